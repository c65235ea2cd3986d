"""Which trial wins: chosen against the noise of single epochs and of seeds. Pure.

The best epoch of any trial is the luckiest one. Here a trial counts by the best mean of several
epochs in a row, the best few are trained again with other seeds, and the best mean over the seeds
wins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.metrics import LOWER_IS_BETTER, is_better
from tuning.results import Trial

__all__ = [
    "FINALISTS",
    "WINDOW",
    "Finalist",
    "best_epoch",
    "choose",
    "finalists",
    "objective",
    "sampling_error",
]

WINDOW = 5
"""Epochs in a row that are averaged, at most: of a short training a quarter of it."""
FINALISTS = 3
"""Trials that are trained again with other seeds."""

History = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Finalist:
    """One of the best trials, with its repeats."""

    number: int
    values: tuple[float | None, ...]
    """The objective for each seed, the trial's own first; None where a repeat came to nothing."""

    @property
    def _told(self) -> list[float]:
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return math.fsum(self._told) / len(self._told)

    @property
    def standard_error(self) -> float | None:
        """Of the mean; None of a single seed."""
        told, mean = self._told, self.mean
        if len(told) < 2:
            return None
        variance = math.fsum((value - mean) ** 2 for value in told) / (len(told) - 1)
        return math.sqrt(variance / len(told))

    def to_dict(self) -> dict[str, Any]:
        """As `best.json` holds it."""
        return {
            "number": self.number,
            "values": list(self.values),
            "mean": self.mean,
            "standard_error": self.standard_error,
        }


def objective(history: History, metric: str) -> float | None:
    """The best mean of a validation metric over epochs in a row; None where there is none."""
    values = [line["validation"][metric] for line in history]
    width = max(1, min(WINDOW, math.ceil(len(values) / 4)))
    means = [math.fsum(values[at : at + width]) / width for at in range(len(values) - width + 1)]
    numbers = [mean for mean in means if not math.isnan(mean)]
    best = min if metric in LOWER_IS_BETTER else max
    return best(numbers) if numbers else None


def best_epoch(history: History, metric: str) -> dict[str, Any]:
    """The epoch whose checkpoint a training keeps, and its validation metrics; empty of none."""
    best: dict[str, Any] = {}
    for line in history:
        validation = line["validation"]
        if not best or is_better(metric, validation[metric], best["validation"][metric]):
            best = {"epoch": line["epoch"], "validation": validation}
    return best


def finalists(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """The best trials by their own objective, the earlier one of equals; those that were stopped
    only where none came to its end."""
    able = [trial for trial in trials if trial.value is not None]
    whole = [trial for trial in able if trial.status == "finished"]
    sign = 1 if metric in LOWER_IS_BETTER else -1
    ranked = sorted(whole or able, key=lambda t: (sign * (t.value or 0.0), t.number))
    return ranked[:FINALISTS]


def choose(trials: Sequence[Trial], repeats: Sequence[Trial], metric: str) -> list[Finalist]:
    """The finalists, the winner first: the best mean over its seeds, the earlier one of equals.
    One that came to nothing with another seed stands behind those that did not."""
    found = [
        Finalist(
            trial.number,
            (trial.value, *(other.value for other in repeats if other.number == trial.number)),
        )
        for trial in finalists(trials, metric)
    ]
    sign = 1 if metric in LOWER_IS_BETTER else -1
    return sorted(found, key=lambda f: (f.values.count(None), sign * f.mean, f.number))


def sampling_error(metric: str, value: float, samples: int) -> float | None:
    """How far chance alone takes a share of so many photos (one standard deviation, binomial); None
    of a metric that is no share."""
    if metric not in ("accuracy", "within_one"):
        return None
    return math.sqrt(value * (1 - value) / samples)
