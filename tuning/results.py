"""What a search leaves behind: its trials, a file for each, and `results.csv` of all of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bintally.storage.folder import write_atomically

__all__ = [
    "BEST_TRIAL",
    "CSV",
    "SEARCH_REPORT",
    "TENSORBOARD",
    "TRIALS",
    "WINNER",
    "Trial",
    "read_repeats",
    "read_trials",
    "trial_name",
    "write_csv",
    "write_trial",
]

BEST_TRIAL = "best.json"
CSV = "results.csv"
TENSORBOARD = "tensorboard"
SEARCH_REPORT = "report.html"
TRIALS = "trials"
WINNER = "winner"
"""Folder of the winner's run."""
METRICS = ("accuracy", "within_one", "rmse", "mae", "loss")


@dataclass(frozen=True)
class Trial:
    """One training of a search."""

    number: int
    """0, 1, … in the order of the search."""
    parameters: Mapping[str, Any]
    """Name in `FitConfig` -> value (floats, whole numbers, strings)."""
    status: str
    """finished, stopped, diverged, out-of-memory or failed."""
    value: float | None
    """The objective: the best mean of several epochs in a row (`choosing.winner`); None of a trial
    that came to nothing."""
    best: Mapping[str, Any]
    """The best epoch and its validation metrics; empty if there is none."""
    history: Sequence[Mapping[str, Any]]
    """An epoch each, as the lines of `metrics.jsonl`."""
    seconds: float
    gpus: float
    """That it held."""
    node: str
    """Where it ran."""
    reason: str = ""
    """Of a status that is not finished."""
    repeat: int = 0
    """How much higher the seed is than the search's: above 0, it is the trial of this number once
    more."""


def trial_name(number: int, repeat: int) -> str:
    """What a trial's folder and file are called."""
    return f"{number:04d}-{repeat}" if repeat else f"{number:04d}"


def write_trial(folder: Path, trial: Trial) -> None:
    """Writes a trial that is over into a search's folder, whole or not at all."""
    file = folder / TRIALS / f"{trial_name(trial.number, trial.repeat)}.json"
    write_atomically(file, (json.dumps(asdict(trial)) + "\n").encode())


def read_trials(folder: Path) -> list[Trial]:
    """The trials of a search that are over, in their order, without repeats."""
    return [trial for trial in _read(folder) if not trial.repeat]


def read_repeats(folder: Path) -> list[Trial]:
    """The best trials with other seeds, in their order."""
    return [trial for trial in _read(folder) if trial.repeat]


def _read(folder: Path) -> list[Trial]:
    found = (Trial(**json.loads(f.read_text())) for f in (folder / TRIALS).glob("*.json"))
    return sorted(found, key=lambda trial: (trial.number, trial.repeat))


def write_csv(file: Path, trials: Sequence[Trial]) -> None:
    """Writes a row for each trial and repeat: its settings, how it ended, and its best epoch's
    metrics."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.parameters))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    last = ("seconds", "gpus", "node", "reason")
    writer.writerow(
        ["trial", "repeat", *names, "status", "value", "best_epoch", "epochs_done", *METRICS, *last]
    )
    for trial in trials:
        metrics = trial.best.get("validation", {})
        writer.writerow(
            [trial.number, trial.repeat, *(trial.parameters.get(name, "") for name in names)]
            + [trial.status, "" if trial.value is None else trial.value]
            + [trial.best.get("epoch", ""), len(trial.history)]
            + [metrics.get(name, "") for name in METRICS]
            + [f"{trial.seconds:.3f}", trial.gpus, trial.node, trial.reason]
        )
    write_atomically(file, buffer.getvalue().encode())
