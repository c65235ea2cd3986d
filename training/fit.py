"""Training: from shards to `best.pt`, on one process or on all that `torchrun` starts.

A run's folder holds `last.pt` and `best.pt`, `metrics.jsonl` with a line an epoch, and, when it is
done, `evaluation.json` and `report.html` of the best checkpoint on the validation split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bintally.dataset.manifest import read_dataset
from bintally.dataset.samples import Samples
from bintally.dataset.shard_cache import shard_cache
from bintally.errors import UsageError, WorkError
from bintally.storage.opening import open_place
from bintally.terminal.progress import say
from training.config import FitConfig
from training.launch.distributed import joined
from training.report.trackers import check_installed
from training.survival.interruption import Survival, Terminated, termination
from training.survival.run_lease import hold
from training.trainer import OnEpoch, Trainer

__all__ = ["Fitted", "fit"]

ASKED_WITHIN_S = 10.0
"""All processes of a job that is to end are asked to, one after the other, within this time."""
ONE_VALUE = "more than 1 value per channel"
"""PyTorch has no type of its own for a batch too small for BatchNorm."""


@dataclass(frozen=True)
class Fitted:
    """How a run ended."""

    finished: bool
    """False where SIGTERM interrupted it, or `on_epoch` paused it: `--resume` goes on."""
    stopped: str
    """Why it ended before its last epoch, if it did."""
    best: dict[str, Any]
    """`epoch` and `validation` metrics of the best epoch so far."""
    history: list[dict[str, Any]]
    """The lines of `metrics.jsonl`."""


def fit(config: FitConfig, on_epoch: OnEpoch | None = None) -> Fitted:
    """Trains a model as `config` says, and leaves the run's folder complete.

    Raises `UsageError` for settings that do not fit the data, the machine or the run that is
    there already, `WorkError` where the data turn out to be damaged or the loss goes astray.
    """
    config.check()
    check_installed(config.trackers)
    with joined(config.device) as process, termination() as requested:
        place = open_place(config.shards)
        dataset = read_dataset(place)
        config.check_classes(dataset.classes)
        cache = shard_cache(config.cache, config.cache_gib)
        train = Samples(place, dataset, "train", cache, config.where)
        validation = Samples(place, dataset, "validation", cache, config.where)
        if len(train) < config.batch_size:
            where = "" if config.where is None else f" where {config.where}"
            raise UsageError(
                f"--batch-size {config.batch_size}: the train split has only {len(train)} samples"
                f"{where}"
            )
        if process.world_size * config.accumulate > config.batch_size:
            raise UsageError(
                f"--batch-size {config.batch_size}: fewer photos than the "
                f"{process.world_size} processes × {config.accumulate} parts"
            )
        survival = Survival(
            process, requested, len(dataset.classes), config.checkpoint_every_minutes
        )
        paused = False
        with hold(config.run, process):
            try:
                run = Trainer(config, dataset, train, validation, process, survival, on_epoch)
                finished = run.execute()
                loop, paused = run.loop, run.paused
                fitted = Fitted(finished, loop.stopped, loop.position.best, loop.position.history)
            except Terminated:
                if process.is_first:
                    say("asked to end before the first step; features that are there are kept")
                fitted = Fitted(finished=False, stopped="", best={}, history=[])
            except ValueError as error:
                if ONE_VALUE not in str(error):
                    raise
                raise UsageError(
                    f"--batch-size {config.batch_size}: BatchNorm has nothing to compare where "
                    f"one of {process.world_size} processes × {config.accumulate} parts is a "
                    f"single photo, and {config.image_size} pixels shrink to one; more photos, a "
                    "larger --image-size, or a smaller --accumulate"
                ) from error
            finally:
                survival.close()
        if not (fitted.finished or paused) and not requested.wait(ASKED_WITHIN_S):
            # An exit code of 0 would tell this process's launcher that the run is done.
            raise WorkError(
                f"another process was asked to end, and this one ends with it; all is saved in "
                f"{config.run}"
            )
        return fitted
