"""Evaluation: every sample of a split exactly once, on any number of processes.

A photo that does not decode has no answer. Either it ends the evaluation, or it is named, left out
of all metrics, and counted: nothing comes in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from bintally.counting.calibration import expected_calibration_error, fit_temperature
from bintally.counting.decision import Decision, decide
from bintally.dataset.labels import Classes
from bintally.dataset.samples import Samples
from bintally.errors import WorkError
from bintally.loading.batches import Batch, load
from bintally.loading.engine import Engine
from bintally.loading.order import evaluation_batches
from training.config import DecideName
from training.launch.distributed import Process
from training.metrics import best_rule, confusion_matrix, count_errors, summarize_counts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Evaluation", "evaluate", "evaluate_batches"]


@dataclass(frozen=True)
class Evaluation:
    """What a model answered for each sample of a split, in the split's order."""

    indices: NDArray[np.int64]
    """(samples,) which of the split they are: all whose photos decode."""
    labels: NDArray[np.int64]
    """(samples,) true class indices."""
    logits: NDArray[np.float32]
    """(samples, classes)."""
    loss: float
    """Mean cross-entropy, in nats, of the logits as they are."""
    left_out: int = 0
    """Samples whose photos do not decode."""
    decision: Decision = field(default_factory=Decision)
    """How the logits become answers."""

    def decided(self, rule: DecideName, classes: Classes, metric: str) -> Evaluation:
        """With the temperature that makes the labels most probable, and the rule that is asked for;
        `auto` is the one whose answers are best by `metric`."""
        temperature = fit_temperature(self.logits, self.labels)
        if rule == "auto":
            calibrated = replace(self, decision=Decision(temperature=temperature))
            rule = best_rule(calibrated.probabilities, self.labels, classes, metric)
        return replace(self, decision=Decision(rule, temperature))

    def summarize(self, classes: Classes, baseline_count: int | str) -> dict[str, Any]:
        """The metrics, as `evaluation.json` holds them."""
        matrix = confusion_matrix(self.labels, self.predicted(classes), len(classes))
        argmax = confusion_matrix(self.labels, self.probabilities.argmax(axis=1), len(classes))
        uncalibrated = replace(self, decision=Decision()).probabilities
        return {
            "loss": self.loss,
            **summarize_counts(matrix, classes, baseline_count),
            "left_out": self.left_out,
            "decision": self.decision.to_dict(),
            "argmax": count_errors(argmax, classes),
            "ece": expected_calibration_error(self.probabilities, self.labels),
            "ece_uncalibrated": expected_calibration_error(uncalibrated, self.labels),
        }

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """(samples, classes), calibrated."""
        probabilities: NDArray[np.float32]
        probabilities = self.decision.probabilities(torch.from_numpy(self.logits)).numpy()
        return probabilities

    def predicted(self, classes: Classes) -> NDArray[np.int64]:
        """(samples,) the class indices that are answered."""
        return decide(self.probabilities, classes, self.decision.rule)


def evaluate(
    model: nn.Module,
    samples: Samples,
    classes: Classes,
    engine: Engine,
    process: Process,
    *,
    batch_size: int,
    precision: torch.dtype,
    left_out: set[int] | None = None,
    pause: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Runs the model over a split, the work divided between processes; all get the result.

    With `left_out`, photos that do not decode are noted there; else they raise `WorkError`.
    `pause` is called after every round of batches, on all processes as often; it may raise.
    """
    order = evaluation_batches(len(samples), batch_size, process.rank, process.world_size)
    return evaluate_batches(
        model,
        load(samples, classes, engine, order, left_out=left_out),
        len(samples),
        len(classes),
        process,
        batch_size=batch_size,
        precision=precision,
        left_out=left_out,
        pause=pause,
    )


def evaluate_batches(
    model: nn.Module,
    batches: Iterable[Batch],
    num_samples: int,
    num_classes: int,
    process: Process,
    *,
    batch_size: int,
    precision: torch.dtype,
    left_out: set[int] | None = None,
    pause: Callable[[], None] = lambda: None,
) -> Evaluation:
    """As `evaluate`, on batches that are there already: this process's of `evaluation_batches`,
    without those samples that are in `left_out` when all batches have come."""
    model.eval()
    device = process.device
    # Each sample is one process's, so adding zeros from the others gives it to all, unchanged.
    labels = torch.zeros(num_samples, dtype=torch.int64, device=device)
    logits = torch.zeros(num_samples, num_classes, dtype=torch.float32, device=device)
    seen = torch.zeros(num_samples, dtype=torch.int64, device=device)
    mine = iter(batches)
    rounds = -(-num_samples // (batch_size * process.world_size))
    with torch.inference_mode():
        for _ in range(rounds):
            # In the last round there may be none left for this process.
            if (batch := next(mine, None)) is not None:
                with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                    answers = model(batch.images)
                at = torch.from_numpy(batch.indices).to(device)
                logits[at] = answers.float()
                labels[at] = batch.labels
                seen[at] += 1
            pause()
        next(mine, None)  # Lets an engine end its run, ready for the next.
    omitted = torch.zeros(num_samples, dtype=torch.int64, device=device)
    omitted[[*(left_out or ())]] = 1
    for values in (labels, logits, seen, omitted):
        process.sum(values)
    if not bool((seen + (omitted > 0) == 1).all()):
        raise RuntimeError("an evaluation has to see every sample exactly once")
    answered = seen == 1
    labels, logits = labels[answered], logits[answered]
    if num_samples and not len(labels):
        raise WorkError(f"not one of the {num_samples:,} photos to evaluate on decodes")
    loss = functional.cross_entropy(logits.double(), labels, reduction="sum") / max(1, len(labels))
    return Evaluation(
        answered.nonzero()[:, 0].cpu().numpy(),
        labels.cpu().numpy(),
        logits.cpu().numpy(),
        float(loss),
        num_samples - len(labels),
    )
