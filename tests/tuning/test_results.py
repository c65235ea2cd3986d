"""What a search leaves behind, and what an older one left."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

from tuning.results import Trial, read_repeats, read_trials, write_csv, write_trial

METRICS = {"accuracy": 0.5, "within_one": 0.9, "rmse": 1.0, "mae": 0.6, "loss": 1.2}
HISTORY = [{"epoch": 1, "validation": METRICS}]
TRIAL = Trial(
    3, {"lr": 0.1}, "finished", 0.5, {"epoch": 1, "validation": METRICS}, HISTORY, 1.0, 0.0, "a"
)


def test_repeats_stand_beside_their_trial_and_are_none(tmp_path: Path) -> None:
    again = replace(TRIAL, repeat=2)
    for trial in (again, TRIAL, replace(TRIAL, number=12_000)):
        write_trial(tmp_path, trial)
    assert read_trials(tmp_path) == [TRIAL, replace(TRIAL, number=12_000)]
    assert read_repeats(tmp_path) == [again]
    write_csv(tmp_path / "results.csv", [TRIAL, again])
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["trial"], row["repeat"], row["lr"], row["rmse"]) for row in rows] == [
        ("3", "0", "0.1", "1.0"),
        ("3", "2", "0.1", "1.0"),
    ]


def test_trials_of_an_older_version_are_read(tmp_path: Path) -> None:
    """For --warm-start to learn from."""
    old = {name: value for name, value in asdict(TRIAL).items() if name != "repeat"}
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials/0003.json").write_text(json.dumps(old))
    assert read_trials(tmp_path) == [TRIAL]
