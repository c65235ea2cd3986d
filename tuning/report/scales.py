"""Scales of a search's plots: where on an axis from 0 to 1 a value stands, and what is told there.

Numbers, logarithms and categories are placed the same way, so that a plot can have any of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Scale", "objective_scale", "parameter_scale", "shorten"]

LONGEST_LABEL = 18


@dataclass(frozen=True)
class Scale:
    """An axis from `low` (at 0) to `high` (at 1), or of `choices` with equal distances."""

    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    """Only whole numbers stand on it."""
    shares: bool = False
    """Its values are told in percent."""
    choices: Sequence[Any] | None = None

    def position(self, value: Any) -> float | None:
        """0 to 1, at an end for what lies beyond it; None for what has no place here."""
        if self.choices is not None:
            if value not in self.choices:
                return None
            places = len(self.choices) - 1
            return self.choices.index(value) / places if places else 0.5
        if not isinstance(value, int | float) or not math.isfinite(value):
            return None
        low, high = self.low, self.high
        if low == high:
            return 0.5
        within = min(max(float(value), low), high)
        if self.log:
            return math.log(within / low) / math.log(high / low)
        return (within - low) / (high - low)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Positions that deserve a label, and the labels: not many more than `most`, or all of
        `choices`."""
        values = self.choices if self.choices is not None else self._round_values(most)
        placed = [(self.position(value), self.label(value)) for value in values]
        return [(position, label) for position, label in placed if position is not None]

    def label(self, value: Any) -> str:
        if self.choices is not None:
            return shorten(str(value))
        return f"{100 * value:.4g}%" if self.shares else f"{value:.6g}"

    def _round_values(self, most: int) -> list[float]:
        from matplotlib.ticker import MaxNLocator

        low, high = self.low, self.high
        if low == high:
            return [low]
        if self.log:
            for factors in ((1, 2, 5), (1, 3), (1,)):
                powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
                marks = [factor * 10.0**power for power in powers for factor in factors]
                inside = [mark for mark in marks if low * (1 - 1e-9) <= mark <= high * (1 + 1e-9)]
                if 2 <= len(inside) <= most:
                    return inside
        locator = MaxNLocator(most, steps=[1, 2, 5, 10], integer=self.whole)
        slack = (high - low) * 1e-9
        return [
            float(value)
            for value in locator.tick_values(low, high)
            if low - slack <= value <= high + slack
        ]


def parameter_scale(options: Mapping[str, Any], values: Sequence[Any]) -> Scale:
    """The scale of a parameter of the search space, wide enough for the trials' values too, which
    may come from an earlier search of another space."""
    if "choices" in options:
        choices = list(options["choices"])
        for value in values:
            if value not in choices:
                choices.append(value)
        return Scale(choices=choices)
    ends = [options["low"], options["high"]]
    numbers = [*ends, *(value for value in values if isinstance(value, int | float))]
    low, high = min(numbers), max(numbers)
    if math.isclose(low, high):
        high = low
    return Scale(
        low=low,
        high=high,
        log=bool(options.get("log")) and low > 0,
        whole=all(isinstance(end, int) for end in ends),
    )


def objective_scale(values: Sequence[float], *, shares: bool) -> Scale:
    """From the worst to the best value, but for outliers: a trial that all but diverged would
    press all others together. What is four times as far from the middle half as that is wide is
    left beyond the end."""
    if not values:
        return Scale(choices=())  # an axis without ticks
    ordered = sorted(values)
    lower, upper = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
    reach = 4 * (upper - lower)
    kept = [value for value in ordered if lower - reach <= value <= upper + reach]
    if len(ordered) < 4 or kept[0] == kept[-1]:
        kept = ordered
    return Scale(low=kept[0], high=kept[-1], shares=shares)


def shorten(text: str) -> str:
    return text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 1]}…"
