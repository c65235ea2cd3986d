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
    "TRIALS",
    "WINNER",
    "Trial",
    "read_trials",
    "write_csv",
    "write_trial",
]

BEST_TRIAL = "best.json"
CSV = "results.csv"
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
    """The objective, of the best epoch; None of a trial that came to nothing."""
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


def write_trial(folder: Path, trial: Trial) -> None:
    """Writes a trial that is over into a search's folder, whole or not at all."""
    write_atomically(
        folder / TRIALS / f"{trial.number:04d}.json", (json.dumps(asdict(trial)) + "\n").encode()
    )


def read_trials(folder: Path) -> list[Trial]:
    """The trials of a search that are over, in their order."""
    files = sorted((folder / TRIALS).glob("*.json"))
    return [Trial(**json.loads(file.read_text())) for file in files]


def write_csv(file: Path, trials: Sequence[Trial]) -> None:
    """Writes a row for each trial: its settings, how it ended, and its best epoch's metrics."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.parameters))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    last = ("seconds", "gpus", "node", "reason")
    writer.writerow(
        ["trial", *names, "status", "value", "best_epoch", "epochs_done", *METRICS, *last]
    )
    for trial in trials:
        metrics = trial.best.get("validation", {})
        writer.writerow(
            [trial.number, *(trial.parameters.get(name, "") for name in names)]
            + [trial.status, "" if trial.value is None else trial.value]
            + [trial.best.get("epoch", ""), len(trial.history)]
            + [metrics.get(name, "") for name in METRICS]
            + [f"{trial.seconds:.3f}", trial.gpus, trial.node, trial.reason]
        )
    write_atomically(file, buffer.getvalue().encode())
