"""Rules that look at what a run recorded and say what is wrong with it, why, and what helps.

They are those of SageMaker Debugger that fit, each a pure function of numbers. Thresholds are that
product's documented defaults (Amazon SageMaker Developer Guide, "List of Debugger Built-in Rules",
2023) unless the table gives a reason for another.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from training.config import RuleName

__all__ = ["RULES", "THRESHOLDS", "Finding", "Records", "apply_rules"]

THRESHOLDS: Mapping[str, Mapping[str, float]] = {
    # Overfit: ratio_threshold 0.1. It fires on almost any run on few photos; it only reports.
    "overfit": {"ratio": 0.1},
    # Overtraining: patience_validation 10, delta 0.01. Its patience for the training loss is left
    # out: at the end of a cosine that loss is meant to stand still.
    "overtraining": {"epochs": 10, "delta": 0.01},
    # LossNotDecreasing: diff_percent 0.1, num_steps 10. Not between one step and the next tenth:
    # single batches are noisy, so the run's first steps are compared with its last.
    "loss-not-decreasing": {"decrease": 0.001, "steps": 10},
    # VanishingGradient: threshold 1e-7, of the mean absolute gradient of a tensor.
    "vanishing-gradient": {"mean_absolute": 1e-7},
    # ExplodingTensor: not finite. Ours also fires on a norm a hundred times the usual.
    "exploding-gradient": {"times_median": 100},
    # DeadRelu: threshold_inactivity 1 %, threshold_layer 50 %.
    "dead-relu": {"activity": 0.01, "share_of_layer": 0.5},
    # ClassImbalance: threshold_imbalance 10, threshold_misprediction 0.7, samples 500. Both must
    # hold of a class: with counts as alike as these, frequent ones are often mistaken, too.
    "class-imbalance": {"ratio": 10, "misprediction": 0.7, "samples": 500},
    # LowGPUUtilization: threshold_p95 70, threshold_p5 10, window 500.
    "low-gpu-utilisation": {"p95": 70, "p5": 10, "window": 500},
    # Dataloader compares the number of loading processes with that of cores, and ours always fits.
    # What matters is how long the model stands still; a tenth is what a faster loader would save.
    "data-loader": {"wait_share": 0.1},
    # CPUBottleneck: cpu_threshold 90, gpu_threshold 10, threshold 50 % of the time.
    "cpu-bottleneck": {"cpu": 90, "gpu": 10, "share": 0.5},
    # GPUMemoryIncrease: increase 5 points, window 10.
    "gpu-memory-growth": {"points": 5, "window": 10},
    # StepOutlier: stddev 3, n_outliers 10. And a hundredth of the steps: of many, some are slow.
    "step-outlier": {"deviations": 3, "outliers": 10, "share": 0.01},
    # MaxInitializationTime: threshold 20 minutes.
    "long-initialisation": {"minutes": 20},
}


@dataclass
class Records:
    """What a run recorded on its first process."""

    history: list[dict[str, Any]] = field(default_factory=list)
    """The lines of `metrics.jsonl`."""
    losses: list[float] = field(default_factory=list)
    """Of the steps of this start."""
    step_seconds: list[float] = field(default_factory=list)
    gradients: list[Mapping[str, float]] = field(default_factory=list)
    """Now and then: the mean absolute gradient of each tensor that is trained."""
    activity: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By ReLU: how much of the time each of its channels is above zero."""
    class_counts: Mapping[str, int] = field(default_factory=dict)
    """Of the train split, by count."""
    confusion: Sequence[Sequence[int]] = field(default_factory=list)
    """The last validation's, in the order of `class_counts`."""
    cpu: list[float] = field(default_factory=list)
    """Percent of all cores, sample by sample."""
    memory_bytes: list[int] = field(default_factory=list)
    """Of this process."""
    gpu: list[float] = field(default_factory=list)
    """Percent of the time in which the GPU did something; empty without one."""
    gpu_memory: list[float] = field(default_factory=list)
    """Percent of the GPU's memory."""
    initialisation_s: float = 0.0
    """Until the first step began; the computation of kept features is work, and not counted."""


@dataclass(frozen=True)
class Finding:
    """What a rule says."""

    rule: str
    status: str
    """IssuesFound or NoIssuesFound."""
    evidence: str
    remedy: str
    """What helps, where there is an issue."""

    @property
    def found(self) -> bool:
        return self.status == "IssuesFound"

    def to_dict(self) -> dict[str, Any]:
        """As `rules.json` holds it."""
        return {**vars(self), "thresholds": dict(THRESHOLDS[self.rule])}


_Verdict = tuple[bool, str]
"""Whether there is an issue, and the evidence."""


def apply_rules(records: Records) -> list[Finding]:
    """What each rule says, in the order of the table."""
    findings = []
    for name, (rule, remedy) in RULES.items():
        found, evidence = rule(records, THRESHOLDS[name])
        status = "IssuesFound" if found else "NoIssuesFound"
        findings.append(Finding(name, status, evidence, remedy if found else ""))
    return findings


def _overfit(records: Records, limit: Mapping[str, float]) -> _Verdict:
    lines = _validated(records)
    if not lines:
        return False, "no validation yet"
    train, validation = lines[-1]["train"]["loss"], lines[-1]["validation"]["loss"]
    ratio = (validation - train) / train if train else math.inf
    return ratio > limit["ratio"], (
        f"validation loss {validation:.3f} is {ratio:+.0%} of the training loss {train:.3f}"
    )


def _overtraining(records: Records, limit: Mapping[str, float]) -> _Verdict:
    lines = _validated(records)
    if not lines:
        return False, "no validation yet"
    best, at = math.inf, 0
    for line in lines:
        if line["validation"]["loss"] < best - limit["delta"]:
            best, at = line["validation"]["loss"], line["epoch"]
    stale = lines[-1]["epoch"] - at
    return stale >= limit["epochs"], (
        f"the validation loss was {best:.3f} after epoch {at}, and not lower by "
        f"{limit['delta']} in the {stale} epochs since"
    )


def _loss_not_decreasing(records: Records, limit: Mapping[str, float]) -> _Verdict:
    window = int(limit["steps"])
    losses = records.losses
    if len(losses) < 2 * window:
        return False, f"only {len(losses)} steps yet"
    window = max(window, len(losses) // 10)
    first, last = (statistics.fmean(part) for part in (losses[:window], losses[-window:]))
    return not last < first * (1 - limit["decrease"]), (
        f"mean loss of the first {window} steps {first:.4f}, of the last {last:.4f}"
    )


def _vanishing_gradient(records: Records, limit: Mapping[str, float]) -> _Verdict:
    if not records.gradients:
        return False, "no gradients recorded yet"
    # One batch may leave a tensor without a gradient; a whole record of them does not.
    recent = records.gradients[-5:]
    largest = {name: max(seen.get(name, 0.0) for seen in recent) for name in recent[-1]}
    name = min(largest, key=lambda key: largest[key])
    return largest[name] < limit["mean_absolute"], (
        f"smallest mean absolute gradient: {largest[name]:.2g}, of {name}"
    )


def _exploding_gradient(records: Records, limit: Mapping[str, float]) -> _Verdict:
    if not records.gradients:
        return False, "no gradients recorded yet"
    sizes = [max(seen.values()) for seen in records.gradients]
    usual = statistics.median(sizes)
    # NaN is larger than nothing, so it is looked for by name.
    worst = next((size for size in sizes if not math.isfinite(size)), max(sizes))
    found = not math.isfinite(worst) or worst > limit["times_median"] * usual
    return found, f"largest mean absolute gradient {worst:.2g}, usually {usual:.2g}"


def _dead_relu(records: Records, limit: Mapping[str, float]) -> _Verdict:
    dead = {
        layer: sum(share < limit["activity"] for share in shares) / len(shares)
        for layer, shares in records.activity.items()
        if shares
    }
    if not dead:
        return False, "no ReLU that is trained"
    layer = max(dead, key=lambda name: dead[name])
    return dead[layer] > limit["share_of_layer"], (
        f"{dead[layer]:.0%} of the channels of {layer} are above zero less than "
        f"{limit['activity']:.0%} of the time"
    )


def _class_imbalance(records: Records, limit: Mapping[str, float]) -> _Verdict:
    counts = records.class_counts
    if sum(counts.values()) < limit["samples"] or not records.confusion:
        return False, f"needs {limit['samples']:.0f} photos and a validation"
    most = max(counts.values())
    rare = []
    for (count, number), row in zip(counts.items(), records.confusion, strict=True):
        total = sum(row)
        missed = 1 - row[[*counts].index(count)] / total if total else 0.0
        if most > limit["ratio"] * number and missed > limit["misprediction"]:
            rare.append(f"{count} ({number} photos to train on, {missed:.0%} mistaken)")
    least = min(counts.values())
    evidence = f"most frequent count {most} photos, rarest {least}"
    return bool(rare), f"{evidence}; {', '.join(rare)}" if rare else evidence


def _low_gpu_utilisation(records: Records, limit: Mapping[str, float]) -> _Verdict:
    window = sorted(records.gpu[-int(limit["window"]) :])
    if len(window) < 20:
        return False, "no GPU, or too short to tell"
    p5, p95 = (window[int(share * (len(window) - 1))] for share in (0.05, 0.95))
    found = p95 < limit["p95"] or p5 < limit["p5"]
    return found, f"GPU utilisation: 5th percentile {p5:.0f} %, 95th {p95:.0f} %"


def _data_loader(records: Records, limit: Mapping[str, float]) -> _Verdict:
    # The first epoch includes what is done once.
    lines = records.history[1:] or records.history
    if not lines:
        return False, "no epoch yet"
    share = statistics.median(line["data_wait_share"] for line in lines)
    return share > limit["wait_share"], f"{share:.1%} of an epoch is waiting for data (median)"


def _cpu_bottleneck(records: Records, limit: Mapping[str, float]) -> _Verdict:
    if not records.gpu:
        return False, "no GPU"
    # The GPU is asked from the first step on.
    pairs = [*zip(records.cpu[-len(records.gpu) :], records.gpu, strict=False)]
    share = sum(cpu > limit["cpu"] and gpu < limit["gpu"] for cpu, gpu in pairs) / len(pairs)
    return share > limit["share"], (
        f"in {share:.0%} of the time the CPU was above {limit['cpu']} % and the GPU below "
        f"{limit['gpu']} %"
    )


def _gpu_memory_growth(records: Records, limit: Mapping[str, float]) -> _Verdict:
    window = int(limit["window"])
    used = records.gpu_memory
    if len(used) < 3 * window:
        return False, "no GPU, or too short to tell"
    # What is taken in the beginning is no growth.
    early, late = statistics.fmean(used[window : 2 * window]), statistics.fmean(used[-window:])
    return late - early > limit["points"], f"GPU memory went from {early:.1f} % to {late:.1f} %"


def _step_outlier(records: Records, limit: Mapping[str, float]) -> _Verdict:
    import numpy as np

    # Of every step of the run: an array, for a head's epoch takes hardly longer than a Python loop.
    seconds = np.array(records.step_seconds[1:])
    if len(seconds) < 20:
        return False, f"only {len(seconds)} steps yet"
    mean = float(seconds.mean())
    border = mean + limit["deviations"] * float(seconds.std())
    slow = int((seconds > border).sum())
    found = slow > max(limit["outliers"], limit["share"] * len(seconds))
    return found, (
        f"{slow} of {len(seconds)} steps took more than {border:.3g} s (mean {mean:.3g} s)"
    )


def _long_initialisation(records: Records, limit: Mapping[str, float]) -> _Verdict:
    seconds = records.initialisation_s
    return seconds > 60 * limit["minutes"], f"the first step began after {seconds:.0f} s"


def _validated(records: Records) -> list[dict[str, Any]]:
    return [line for line in records.history if line.get("validation")]


_Rule = Callable[[Records, Mapping[str, float]], _Verdict]

RULES: Mapping[RuleName, tuple[_Rule, str]] = {
    "overfit": (
        _overfit,
        "more photos, --dropout 0.5, --label-smoothing 0.1, a higher --weight-decay, fewer epochs",
    ),
    "overtraining": (_overtraining, "--patience 10, or fewer --epochs"),
    "loss-not-decreasing": (
        _loss_not_decreasing,
        "another --lr (three times lower, then three times higher); are the labels right?",
    ),
    "vanishing-gradient": (
        _vanishing_gradient,
        "a backbone with residual connections and norms, --weights imagenet, a higher --lr",
    ),
    "exploding-gradient": (_exploding_gradient, "a lower --lr, a longer --warmup-epochs"),
    "dead-relu": (_dead_relu, "a lower --lr, a longer --warmup-epochs, another --seed"),
    "class-imbalance": (_class_imbalance, "--balance loss, or more photos of the rare counts"),
    "low-gpu-utilisation": (
        _low_gpu_utilisation,
        "a larger --batch-size, --precision bf16; see data-loader and cpu-bottleneck",
    ),
    "data-loader": (
        _data_loader,
        "--engine dali, more CPU cores for each GPU, photos stored smaller (build --resize)",
    ),
    "cpu-bottleneck": (_cpu_bottleneck, "more CPU cores for each GPU, or photos stored smaller"),
    "gpu-memory-growth": (
        _gpu_memory_growth,
        "a hook or a list that keeps tensors: --profile shows what allocates",
    ),
    "step-outlier": (_step_outlier, "look at --profile; other work on the machine, slow storage"),
    "long-initialisation": (
        _long_initialisation,
        "shards and weights on a disk nearby; no --compile for short runs",
    ),
}

assert [*RULES] == [*get_args(RuleName)] == [*THRESHOLDS], "one list of rules"
