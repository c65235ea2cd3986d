"""Which trials go on: successive halving (Jamieson and Talwalkar 2016), in cohorts. Pure.

Each eight trials in a row are a cohort. After a quarter of its own epochs a trial waits until all
of its cohort have come so far; the better half goes on to half of their epochs, and the better half
of those to the end. So the decision depends on those eight alone, whoever is first, and a cohort
takes half of the epochs. A rung is a share of a trial's own epochs because its learning rate
follows a cosine over them: there, all are at the same point of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tuning.results import Trial

__all__ = ["COHORT", "RUNGS", "Cohort", "better_half", "rung_epochs"]

COHORT = 8
RUNGS = (0.25, 0.5)


def rung_epochs(epochs: int) -> list[int]:
    """The epochs after which a training of so many is compared, and its end."""
    return [*(math.ceil(epochs * share) for share in RUNGS), epochs]


def better_half(values: Mapping[int, float | None], *, lower_is_better: bool) -> list[int]:
    """The numbers of the better half of the trials that have a value, of an odd number the larger
    half, in their order; of equals the earlier ones."""
    sign = 1 if lower_is_better else -1
    told = sorted((sign * value, number) for number, value in values.items() if value is not None)
    return sorted(number for _, number in told[: math.ceil(len(told) / 2)])


@dataclass
class Cohort:
    """Trials that are compared with each other."""

    numbers: list[int]
    """Those that are still in it."""
    rung: int = 0
    """To which they are on their way; past the last one there is nothing left to compare."""
    results: dict[int, Trial] = field(default_factory=dict)
    """Of those that have come so far, or ended before."""

    @property
    def due(self) -> bool:
        """Whether all are there that are compared."""
        return self.rung < len(RUNGS) and self.results.keys() >= set(self.numbers)

    def halve(self, *, lower_is_better: bool) -> dict[int, Trial]:
        """Keeps the better half, and moves on to the next rung; the results of the others."""
        values = {number: self.results[number].value for number in self.numbers}
        kept = better_half(values, lower_is_better=lower_is_better)
        left = {number: self.results.pop(number) for number in self.numbers if number not in kept}
        self.numbers = kept
        self.rung += 1
        return left
