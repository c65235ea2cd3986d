"""The settings of a search."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from bintally.dataset.labels import Classes, are_counts
from bintally.errors import UsageError
from bintally.options import DeviceName, EngineName, PrecisionName, Trainable
from training.config import FitConfig, MetricName
from training.metrics import NEEDS_COUNTS
from training.presets import preset
from tuning.space import ORIGINAL, Range, Space, parse_space

__all__ = ["SEARCH_FORMAT", "AlgorithmName", "SchedulerName", "SearchConfig"]

AlgorithmName = Literal["optuna", "random", "grid"]
SchedulerName = Literal["none", "halving"]

AT_A_TIME = 8
"""Trials at a time, unless more are asked for. Fixed, for the next trial learns from those that are
over: up to so many, a search has the same trials on any cluster."""


@dataclass(frozen=True)
class SearchConfig:
    """Settings of `search`."""

    shards: str
    """The dataset that `bintally build` made: a folder, or s3://BUCKET/PREFIX."""
    output: Path
    """Folder of this search: its trials, the winner, results.csv, best.json, report.html."""
    resume: bool = False
    """Go on with the search that was begun in --output: what is finished is not trained again."""

    trials: int = 20
    """How many trainings, at most."""
    space: Path | None = None
    """TOML file with what is searched (tuning/space.py). Else it is the original's: lr 0.001 to
    0.1, batch size 32 to 512, 32 to 128 epochs."""
    metric: MetricName = "accuracy"
    """What is made best, on the validation split. Test is touched once, by the winner."""
    algorithm: AlgorithmName = "optuna"
    """optuna learns from the trials before (TPE); random does not; grid tries all combinations."""
    scheduler: SchedulerName = "none"
    """halving compares each eight trials after a quarter and after half of their epochs, and lets
    the better half go on: half of the epochs in all."""
    repeats: int = 2
    """How often the best three are trained again, with other seeds: the best mean wins. 0 takes the
    best trial as it is."""
    concurrency: int = 0
    """Trials at a time, at most; 0 is eight, or, with --scheduler halving, sixteen."""
    minutes: float = 0.0
    """End the search after so long, with the trials that are there; 0 does not."""
    patience: int = 0
    """End the search after so many trials without a better one; 0 does not."""
    warm_start: tuple[Path, ...] = ()
    """Folders of earlier searches over the same settings, for Optuna to learn from."""
    seed: int = 0
    """Of the search and of every training. The same seed gives the same trials on any cluster, with
    up to eight at a time."""

    gpus_per_trial: float = -1.0
    """A fraction lets trials share a GPU. -1 is one where the cluster has any, and a quarter where
    only heads are trained."""
    cpus_per_trial: float = 1.0
    workers_per_trial: int = 1
    """Processes that train a trial together (Ray Train), each with those GPUs and CPUs."""
    ray: str | None = None
    """A Ray cluster: its address, or auto for the one this machine belongs to. Else one is started
    on this machine, or the job's own is used."""

    preset: str = "capstone"
    """The recipe (training/presets.py) whose settings are searched; what --space names wins."""
    backbone: str | None = None
    """A classifier of torchvision by name, or timm:NAME; else the preset's."""
    weights: str | None = None
    """What the backbone begins with: imagenet (downloaded), none, or a file."""
    trainable: Trainable | None = None
    """Heads on a frozen backbone, whose features are computed once, or everything."""
    image_size: int = 224
    precision: PrecisionName = "auto"
    engine: EngineName = "auto"
    device: DeviceName = "auto"
    cache: Path | None = None
    """Folder to which shards on S3 are brought, on every machine."""
    cache_gib: float = 0.0
    """The most that --cache may hold, in GiB; 0 is no limit."""
    mirror: str | None = None
    """s3://BUCKET/PREFIX that gets the checkpoints of trainings of everything, so that a trial goes
    on where it was after its machine is lost; needless where --output is a shared folder."""

    def check(self) -> None:
        """Raises `UsageError` for a value that makes no sense."""
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not value >= least:
                raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
        if not self.cpus_per_trial > 0:
            raise UsageError(f"--cpus-per-trial {self.cpus_per_trial}: must be above 0")
        heads = self.base(ORIGINAL).trainable == "head"
        if heads and self.workers_per_trial > 1:
            raise UsageError(
                f"--workers-per-trial {self.workers_per_trial}: a head needs one process only; "
                "this is for --trainable all"
            )
        if self.warm_start and self.algorithm != "optuna":
            raise UsageError("--warm-start: only --algorithm optuna learns from earlier trials")

    def read_space(self) -> Space:
        """What is searched. Raises `UsageError` for a file that cannot be read or is no space."""
        if self.space is None:
            return ORIGINAL
        try:
            text = self.space.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--space {self.space}: cannot be read: {error}") from error
        return parse_space(text, str(self.space))

    def check_space(self, space: Space, classes: Classes = ()) -> None:
        """Raises `UsageError`, as `fit` does, for a value of the space that makes no sense, of the
        dataset's `classes` too, and for a range of what decides a frozen backbone's features."""
        if self.metric in NEEDS_COUNTS and not are_counts(classes):
            raise UsageError(
                f"--metric {self.metric}: needs counts, and the classes of {self.shards} are "
                "names; choose accuracy or loss"
            )
        base = self.base(space)
        _check_training(base, classes)
        for name, dimension in space.dimensions.items():
            if base.trainable == "head" and name in OF_FEATURES and isinstance(dimension, Range):
                raise UsageError(
                    f"--space {self.space}: {name} is a range, and each of its values has features "
                    "of its own on a frozen backbone; list those to try"
                )
            for value in dimension.ends():
                try:
                    setting: dict[str, Any] = {name: value}
                    _check_training(replace(base, **setting), classes)
                except UsageError as error:
                    raise UsageError(f"--space {self.space}: {error}") from error

    def base(self, space: Space) -> FitConfig:
        """The training that a trial is, with the preset's values for what is searched.

        Its `run` is the output folder, for each trial to have one below it.
        """
        own = {field.name for field in fields(FitConfig)} & {*SHARED}
        given = {name: value for name in own if (value := getattr(self, name)) is not None}
        settings = preset(self.preset) | given | dict(space.fixed)
        return FitConfig(run=self.output, best_metric=self.metric, resume=True, **settings)

    @property
    def lag(self) -> int:
        """Trials that may be begun before the first of them is over."""
        most = max(self.concurrency, AT_A_TIME)
        # Those of a cohort wait for each other, while the next one begins.
        return 2 * most if self.scheduler == "halving" else most

    def to_dict(self, space: Space) -> dict[str, Any]:
        """What decides the search's trials, for a resumed one to be compared with."""
        value = {k: v for k, v in asdict(self).items() if k in DECIDING}
        value["format"] = SEARCH_FORMAT
        value["warm_start"] = [folder.name for folder in self.warm_start]
        base = self.base(space).to_dict()
        return value | {"space": space.to_dict(), "base": base}


def _check_training(training: FitConfig, classes: Classes) -> None:
    training.check()
    training.check_classes(classes)


SEARCH_FORMAT = "bintally-search/2"
"""Since trials count by several epochs in a row, and their order is any cluster's."""
LEAST = {
    "trials": 1,
    "repeats": 0,
    "concurrency": 0,
    "minutes": 0,
    "patience": 0,
    "gpus_per_trial": -1,
    "workers_per_trial": 1,
}
SHARED = (
    "shards",
    "backbone",
    "weights",
    "trainable",
    "image_size",
    "precision",
    "engine",
    "device",
    "cache",
    "cache_gib",
    "mirror",
    "seed",
)
"""Settings that a search hands on to its trainings."""
OF_FEATURES = ("image_size",)
"""Numbers that decide what a frozen backbone makes of a photo."""
DECIDING = ("metric", "algorithm", "scheduler", "seed", "workers_per_trial")
