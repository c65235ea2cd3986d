"""The tuning benchmark: `python -m benchmarks tuning`, see `Tuning` in `__main__`."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.environment import read_environment
from benchmarks.measure import Contestant, Measurement, take_turns
from benchmarks.plot import publish
from benchmarks.results import Metric, Report, results_folder
from benchmarks.training.benchmark import render, unpack
from benchmarks.tuning.plain import plain

__all__ = ["run"]

LIBRARIES = ("ray", "optuna", "torch", "torchvision", "timm", "pillow", "simplejpeg")
BACKBONE = "timm:tf_efficientnet_lite0"
METRICS = (
    Metric("trials_per_hour", "trials an hour", 1),
    Metric("search_s", "whole search, s"),
    Metric("features_s", "of it features, s"),
    Metric("epochs", "epochs trained"),
)
NOTES = (
    "Ours is the search as a user runs it, from nothing to the last trial, features included. The "
    "winner's own training comes after.",
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


FULL = Size(trials=20, plain_trials=2, rounds=2, photos=2000, space="")
QUICK = Size(
    trials=4,
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
        contestants = [
            Contestant(
                "bintally",
                partial(_ours, size, scratch, str(Path(place).absolute()), weights, epochs),
                {"command": "python -m tuning search", "trials": size.trials},
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


def _ours(size: Size, scratch: Path, shards: str, weights: str, epochs: Path) -> Measurement:
    """A search with nothing kept from earlier ones."""
    from tuning.config import SearchConfig
    from tuning.results import read_trials
    from tuning.search import search

    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        os.environ["BINTALLY_CACHE"] = str(folder / "cache")
        space = folder / "space.toml"
        space.write_text(size.space)
        summary = search(
            SearchConfig(
                shards,
                folder / "search",
                trials=size.trials,
                space=space if size.space else None,
                backbone=BACKBONE,
                weights=weights,
                device="cpu",
            )
        )
        trained = [len(trial.history) for trial in read_trials(folder / "search")]
    epochs.write_text(json.dumps(trained))
    seconds = summary["seconds"]["features"] + summary["seconds"]["search"]
    return {
        "trials_per_hour": 3600 * size.trials / seconds,
        "search_s": seconds,
        "features_s": summary["seconds"]["features"],
        "epochs": float(sum(trained)),
    }
