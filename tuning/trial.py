"""What a trial does, on whatever machine of the cluster: trains a head, or everything.

Both report an epoch at a time to Ray Tune: `line`, as `metrics.jsonl` has it, `value`, the
objective of the best epoch so far, and `best`. The last report says how the training ended.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ray import tune

from bintally.dataset.manifest import read_dataset
from bintally.errors import CommandError, UsageError
from bintally.storage.cache import use_cache
from bintally.storage.opening import open_place
from training.config import FitConfig
from training.fit import Fitted, fit
from training.heads import HeadData, HeadTraining
from training.launch.distributed import alone
from training.launch.ray_train import fit_in_group
from training.metrics import LOWER_IS_BETTER, is_better
from training.report.history import read_history
from training.report.results import BEST, LAST, METRICS
from training.survival.interruption import LossDiverged
from tuning.results import TRIALS, Trial

__all__ = ["HeadTrial", "Task", "number_of", "train_everything", "trial_config"]


@dataclass(frozen=True)
class Task:
    """What all trials of a search share. Picklable."""

    base: FitConfig
    """The training, with absolute paths; its `run` is the search's folder."""
    features: Mapping[str, Any]
    """References to the `HeadData` of each backbone, where heads are trained."""
    known: Mapping[int, Trial]
    """Trials that are over, from before the search was interrupted."""
    cache: str | None
    """Of the machine that searches: $BINTALLY_CACHE."""
    workers: int
    """Processes of a trial."""
    resources: Mapping[str, float]
    """Of each of them: CPU, GPU."""
    inherits: bool
    """Whether trials go on from each other's checkpoints (population based training)."""

    @property
    def worst(self) -> float:
        """The objective of a trial that came to none, for those who compare."""
        return math.inf if self.base.best_metric in LOWER_IS_BETTER else -math.inf


def number_of(config: Mapping[str, Any], trial_id: str) -> int:
    """The number of a trial: a population's members copy each other's settings, this included."""
    _, _, last = trial_id.rpartition("_")
    return int(last) if "_" in trial_id else int(config["number"])


def trial_config(base: FitConfig, parameters: Mapping[str, Any], number: int) -> FitConfig:
    """The training that a trial is."""
    name = f"{TRIALS}/{number:04d}"
    mirror = None if base.mirror is None else f"{base.mirror.rstrip('/')}/{name}"
    return replace(base, **parameters, run=base.run / name, mirror=mirror)


class Reporter:
    """Makes reports of epochs' lines: each with the best epoch so far. Picklable."""

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._best: dict[str, Any] = {}

    def __call__(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """The report of an epoch."""
        validation, metric = line["validation"], self._metric
        if not self._best or is_better(
            metric, validation[metric], self._best["validation"][metric]
        ):
            self._best = {"epoch": line["epoch"], "validation": validation}
        return {
            "line": dict(line),
            "best": self._best,
            "value": self._best["validation"][metric],
            "node": _node(),
        }


class HeadTrial(tune.Trainable):  # type: ignore[misc]
    """Trains a head on kept features. Its actor is used for one trial after another."""

    def setup(self, config: dict[str, Any], task: Task) -> None:
        self._task = task
        self._process = alone(task.base.device)
        self._begin(config)

    def reset_config(self, config: dict[str, Any]) -> bool:
        """The same actor, another trial."""
        self._begin(config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._number, self._parameters = number_of(config, self.trial_id), config["parameters"]
        self._training: HeadTraining | None = None
        self._report = Reporter(self._task.base.best_metric)

    def step(self) -> dict[str, Any]:
        """Trains an epoch."""
        if (known := self._task.known.get(self._number)) is not None:
            return _told_again(known, self._task)
        try:
            return self._train_epoch()
        except (CommandError, MemoryError, RuntimeError) as error:
            return _ended_by(error, self._task)

    def _train_epoch(self) -> dict[str, Any]:
        if self._training is None:
            config = trial_config(self._task.base, self._parameters, self._number)
            self._training = HeadTraining(config, self._data(config.backbone), self._process)
        training = self._training
        line = training.train_epoch()
        if not math.isfinite(line["train"]["loss"]):
            return _ended_by(
                LossDiverged(f"epoch {line['epoch']}: the loss is no number"), self._task
            )
        return self._report(line) | ({"status": "finished", "done": True} if training.ended else {})

    def _data(self, backbone: str) -> HeadData:
        import ray

        data: HeadData = ray.get(self._task.features[backbone])
        return data


def train_everything(config: dict[str, Any], task: Task) -> None:
    """A function that Ray Tune runs: `fit` in the trial's folder, where it goes on after a loss."""
    number = number_of(config, tune.get_context().get_trial_id())
    if (known := task.known.get(number)) is not None:
        tune.report(_told_again(known, task))
        return
    use_cache(task.cache)
    training = trial_config(task.base, config["parameters"], number)
    reporter = Reporter(task.base.best_metric)
    try:
        if task.inherits:
            fitted = _fit_member(training, reporter)
        else:
            for line in read_history(training.run / METRICS, training.epochs):
                tune.report(reporter(line))  # Of before it was interrupted.
            if task.workers > 1:
                fit_in_group(training, task.workers, task.resources, reporter)
                return
            fitted = fit(training, lambda line: tune.report(reporter(line)))
        tune.report(
            {
                "value": fitted.best["validation"][task.base.best_metric],
                "best": fitted.best,
                "past": tuple(fitted.history),
                "status": "finished",
                "reason": fitted.stopped,
                "done": True,
            }
        )
    except (CommandError, MemoryError, RuntimeError) as error:
        tune.report(_ended_by(error, task))


def _fit_member(training: FitConfig, reporter: Reporter) -> Fitted:
    """Trains a member of a population from where Ray Tune has it begin, with its settings of now:
    where it was itself, or where the better one was that it inherits from."""
    # Whatever else is there, the member has given it up.
    shutil.rmtree(training.run, ignore_errors=True)
    past: tuple[dict[str, Any], ...] = ()
    if (checkpoint := tune.get_checkpoint()) is not None:
        past = _inherit(training, Path(checkpoint.path))
        for line in past:
            reporter(line)

    def report(line: dict[str, Any]) -> None:
        if line["epoch"] == training.epochs:
            return  # It is told with the end: there is nothing left to inherit for.
        with tempfile.TemporaryDirectory() as folder:
            for name in INHERITED:
                shutil.copy(training.run / name, folder)
            checkpoint = tune.Checkpoint.from_directory(folder)
            tune.report(reporter(line) | {"past": past}, checkpoint=checkpoint)

    return fit(training, report)


INHERITED = (LAST, BEST, METRICS)


def _inherit(training: FitConfig, checkpoint: Path) -> tuple[dict[str, Any], ...]:
    """Makes a run's folder that of a better one, with this trial's settings from here on; returns
    the lines of the epochs that are over."""
    from bintally.counting.checkpoint import read_checkpoint, write_checkpoint

    training.run.mkdir(parents=True)
    for name in INHERITED:
        shutil.copy(checkpoint / name, training.run)
    last, _ = read_checkpoint(checkpoint / LAST)
    write_checkpoint(training.run / LAST, replace(last, config=training.to_dict()))
    return tuple(read_history(training.run / METRICS, last.epoch))


CPU_IS_FULL = "DefaultCPUAllocator"
"""PyTorch has no type of its own for a CPU's memory that is full."""


def _told_again(known: Trial, task: Task) -> dict[str, Any]:
    """The whole trial at once, as it was."""
    value = task.worst if known.value is None else known.value
    return {"value": value, "done": True}


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
        "value": task.worst,
        "status": status,
        "reason": reason[0] if reason else type(error).__name__,
        "node": _node(),
        "done": True,
    }


def _node() -> str:
    import ray

    return f"{ray.util.get_node_ip_address()}/{ray.get_runtime_context().get_node_id()[:6]}"
