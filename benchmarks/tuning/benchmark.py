"""The tuning benchmark: `python -m benchmarks tuning`, see `Tuning` in `__main__`."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.environment import read_environment
from benchmarks.measure import Contestant, Measurement, take_turns
from benchmarks.plot import publish
from benchmarks.results import Metric, Report, results_folder
from benchmarks.training.benchmark import render, unpack
from benchmarks.tuning.plain import plain
from tuning.config import SearchConfig

__all__ = ["run"]

LIBRARIES = ("ray", "optuna", "torch", "torchvision", "timm", "pillow", "simplejpeg")
BACKBONE = "timm:tf_efficientnet_lite0"
METRICS = (
    Metric("trials_per_hour", "trials an hour", 1),
    Metric("search_s", "whole search, s"),
    Metric("features_s", "of it features, s"),
    Metric("epochs", "epochs trained"),
    Metric("overhead_s", "a trial beside its training, s", 2),
)
NOTES = (
    "Ours is the search as a user runs it, from nothing to the last trial, features and repeats of "
    "the best three included. The winner's own training comes after.",
    "Many trials are heads of two epochs, and show what a trial costs beside its training: "
    "processes that start, waiting for others, Ray Tune and Optuna.",
    "The plain way is measured on a few trials of one epoch each, as many at a time, and "
    "extrapolated: the seconds of an epoch times the epochs of the trials that ours ran.",
)


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    trials: int
    """Of ours."""
    plain_trials: int
    rounds: int
    photos: int
    """Rendered where no dataset is named."""
    space: str
    """What is searched; empty is the original's space."""
    many: int
    """Trials of two epochs each."""


FULL = Size(trials=20, plain_trials=2, rounds=2, photos=2000, space="", many=1000)
MANY = "lr = {low = 0.001, high = 0.1, log = true}\nbatch_size = 512\nepochs = 2\n"
QUICK = Size(
    trials=4,
    many=8,
    plain_trials=2,
    rounds=1,
    photos=240,
    space="lr = {low = 0.001, high = 0.1, log = true}\nbatch_size = [32, 64]\n"
    "epochs = {low = 8, high = 16}\n",
)


def run(*, quick: bool, output: Path | None, shards: str | None, weights: str) -> int:
    """Measures both and writes the results; 1 where one failed."""
    environment = read_environment(LIBRARIES)
    folder = results_folder(output, environment, quick)
    size = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(prefix="bintally-tuning-") as temporary:
        scratch = Path(temporary)
        place = shards or render(scratch, size.photos, split=(0.6, 0.2, 0.2))
        if weights != "none":
            weights = str(Path(weights).absolute())
        epochs = scratch / "epochs.json"
        many = MANY if not quick else MANY.replace("512", "64")
        config = SearchConfig(
            str(Path(place).absolute()),
            scratch,
            trials=size.trials,
            backbone=BACKBONE,
            weights=weights,
            device="cpu",
        )
        contestants = [
            Contestant(
                "bintally",
                partial(_ours, scratch, config, size.space, epochs),
                {"command": "python -m tuning search", "trials": size.trials},
                "ours",
            ),
            Contestant(
                "bintally, halving",
                partial(_ours, scratch, replace(config, scheduler="halving"), size.space),
                {"command": "python -m tuning search --scheduler halving", "trials": size.trials},
                "ours",
            ),
            Contestant(
                f"bintally, {size.many:,} trials",
                partial(_ours, scratch, replace(config, trials=size.many), many),
                {"trials": f"{size.many:,}, two epochs each"},
                "ours",
            ),
            Contestant(
                "plain Ray Tune",
                partial(
                    plain,
                    BACKBONE,
                    weights,
                    unpack(place, scratch / "photos", "train"),
                    unpack(place, scratch / "photos", "validation"),
                    size.plain_trials,
                    epochs,
                ),
                {
                    "trials": f"{size.plain_trials}, one epoch each, extrapolated",
                    "input": "ImageFolder and a DataLoader in each trial",
                },
            ),
        ]
        results = take_turns(
            contestants, size.rounds, task="tuning", num_warmups=0, timeout_s=3600.0
        )
    report = Report(
        name="tuning",
        title="Tuning: from shards to trials of 32 to 128 epochs",
        metrics=METRICS,
        workload={
            "trials": f"{size.trials}, heads on a frozen {BACKBONE}, Adam",
            "space": size.space.strip().replace("\n", "; ") or "the original's",
            "photos": "rendered bins" if shards is None else "the dataset that --shards names",
            "at a time": os.cpu_count() or 1,
        },
        notes=NOTES,
        num_rounds=size.rounds,
        quick=quick,
        environment=environment,
        results=results,
    )
    return publish(report, folder)


def _ours(
    scratch: Path, config: SearchConfig, space: str, epochs: Path | None = None
) -> Measurement:
    """A search with nothing kept from earlier ones; the epochs of each trial go to a file."""
    from tuning.results import read_repeats, read_trials
    from tuning.search import search

    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        os.environ["BINTALLY_CACHE"] = str(folder / "cache")
        file = folder / "space.toml"
        file.write_text(space)
        summary = search(replace(config, output=folder / "search", space=file if space else None))
        trained = read_trials(folder / "search") + read_repeats(folder / "search")
    if epochs is not None:
        epochs.write_text(json.dumps([len(trial.history) for trial in trained]))
    seconds = sum(summary["seconds"][part] for part in ("features", "search", "repeats"))
    return {
        "trials_per_hour": 3600 * config.trials / seconds,
        "search_s": seconds,
        "features_s": summary["seconds"]["features"],
        "epochs": float(summary["epochs"]),
        "overhead_s": summary["overhead_s"],
    }
