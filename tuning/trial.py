"""What a trial does, on whatever machine of the cluster: trains a head, or everything.

Both report to Ray Tune the `lines` of epochs, as `metrics.jsonl` has them, and at the end a
`status`; where that is not finished, with a `reason`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray import tune

from bintally.dataset.manifest import read_dataset
from bintally.errors import CommandError, UsageError
from bintally.storage.cache import use_cache
from bintally.storage.opening import open_place
from training.config import FitConfig
from training.fit import fit
from training.heads import HeadTraining, feature_settings
from training.launch.distributed import alone
from training.launch.ray_train import fit_in_group, settled
from training.report.history import read_history
from training.report.results import METRICS
from training.survival.interruption import LossDiverged
from tuning.choosing.agenda import TrialJob
from tuning.results import TRIALS, trial_name

__all__ = ["HeadTrial", "Task", "hold_rung", "job_config", "train_everything", "trial_config"]

REPORT_S = 1.0
"""A head's epochs are reported so often: one by one they would keep the driver from its work."""


@dataclass(frozen=True)
class Task:
    """What all trials of a search share. Picklable."""

    base: FitConfig
    """The training, with absolute paths; its `run` is the search's folder."""
    features: Mapping[Any, Any]
    """References to the `HeadData` for each of `feature_settings`, where heads are trained."""
    rung: Any
    """The actor of a `Rung`, where heads are trained."""
    cache: str | None
    """Of the machine that searches: $BINTALLY_CACHE."""
    workers: int
    """Processes of a trial."""
    resources: Mapping[str, float]
    """Of each of them: CPU, GPU."""


class Rung:
    """Where heads wait for each other: an actor that holds what they go on from."""

    def __init__(self) -> None:
        self._states: dict[int, bytes] = {}

    def keep(self, number: int, state: bytes) -> None:
        """Of a trial."""
        self._states[number] = state

    def take(self, number: int) -> bytes | None:
        """What was kept, and is gone then; None of a trial that begins."""
        return self._states.pop(number, None)

    def drop(self, number: int) -> None:
        """Of a trial that does not go on."""
        self._states.pop(number, None)


def hold_rung() -> Any:
    """The actor of a `Rung`, on this node, which a search cannot lose anyway."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Rung).remote()


def trial_config(base: FitConfig, parameters: Mapping[str, Any], name: str) -> FitConfig:
    """A training with these settings, in a folder of the search's."""
    mirror = None if base.mirror is None else f"{base.mirror.rstrip('/')}/{name}"
    return settled(replace(base, **parameters, run=base.run / name, mirror=mirror))


def job_config(base: FitConfig, job: TrialJob) -> FitConfig:
    """The training that a job is, or a part of it."""
    config = trial_config(base, job.parameters, f"{TRIALS}/{trial_name(job.number, job.repeat)}")
    return replace(config, seed=base.seed + job.repeat)


class HeadTrial(tune.Trainable):  # type: ignore[misc]
    """Trains a head, on kept features where it can. Its actor takes one trial after another."""

    def setup(self, config: dict[str, Any], task: Task) -> None:
        self._task = task
        self._process = alone(task.base.device)
        use_cache(task.cache)
        self.reset_config(config)

    def reset_config(self, config: dict[str, Any]) -> bool:
        """The same actor, another trial."""
        self._job, self._config = config["job"], config["training"]
        self._training: HeadTraining | None = None
        return True

    def step(self) -> dict[str, Any]:
        """Trains some epochs."""
        lines: list[dict[str, Any]] = []
        report = {"lines": lines, "node": _node()}
        try:
            over = self._train_epochs(lines)
        except (CommandError, MemoryError, RuntimeError) as error:
            return report | _ended_by(error, self._task)
        return report | ({"status": "finished", "done": True} if over else {})

    def _train_epochs(self, lines: list[dict[str, Any]]) -> bool:
        """Trains for a moment, or to the end of the job; whether that is reached."""
        if self._training is None:
            self._training = self._begin()
        training, job, until = self._training, self._job, time.monotonic() + REPORT_S
        while not (training.ended or training.epoch >= job.until):
            if lines and time.monotonic() > until:
                return False
            line = training.train_epoch()
            if not math.isfinite(line["train"]["loss"]):
                raise LossDiverged(f"epoch {line['epoch']}: the loss is no number")
            lines.append(line)
        if job.until < job.epochs:
            import ray

            ray.get(self._task.rung.keep.remote(job.number, training.state()))
        return True

    def _begin(self) -> HeadTraining:
        import ray

        key = feature_settings(self._config)
        data = None if key is None else ray.get(self._task.features[key])
        training = HeadTraining(self._config, data, self._process)
        # Of a repeat, and where the actor was lost, there is nothing: then from the beginning.
        state = None if self._job.repeat else ray.get(self._task.rung.take.remote(self._job.number))
        if state is not None:
            training.load(state)
        return training


def train_everything(config: dict[str, Any], task: Task) -> None:
    """A function that Ray Tune runs: `fit` in the trial's folder, where it goes on from where it
    waited, or after a loss."""
    job, training = config["job"], config["training"]
    use_cache(task.cache)

    def to_report(line: dict[str, Any]) -> dict[str, Any]:
        return {"lines": [line], "node": _node()}

    def report(line: dict[str, Any]) -> bool:
        tune.report(to_report(line))
        return bool(line["epoch"] == job.until)

    try:
        # Of before it waited, or was interrupted.
        past = read_history(training.run / METRICS, job.until)
        tune.report({"lines": past, "node": _node()})
        reason = ""
        if len(past) < job.until:
            if task.workers > 1:
                fit_in_group(training, task.workers, task.resources, to_report, job.until)
            else:
                reason = fit(training, report).stopped
        tune.report({"lines": [], "status": "finished", "reason": reason, "done": True})
    except (CommandError, MemoryError, RuntimeError) as error:
        tune.report({"lines": [], "node": _node()} | _ended_by(error, task))


CPU_IS_FULL = "DefaultCPUAllocator"
"""PyTorch has no type of its own for a CPU's memory that is full."""


def _ended_by(error: BaseException, task: Task) -> dict[str, Any]:
    """The last report of a trial that came to nothing by its own settings: not tried again.

    Raises what may have been the fault of the machine, the shards or S3: Ray Tune begins such a
    trial again.
    """
    if isinstance(error, LossDiverged):
        status = "diverged"
    elif isinstance(error, UsageError):
        # That the shards cannot be reached, or a login has expired, is no setting of a trial.
        read_dataset(open_place(task.base.shards))
        status = "failed"
    elif isinstance(error, MemoryError | torch.OutOfMemoryError) or CPU_IS_FULL in str(error):
        status = "out-of-memory"
    else:
        raise error
    reason = str(error).strip().splitlines()
    return {
        "status": status,
        "reason": reason[0] if reason else type(error).__name__,
        "done": True,
    }


def _node() -> str:
    import ray

    return f"{ray.util.get_node_ip_address()}/{ray.get_runtime_context().get_node_id()[:6]}"
