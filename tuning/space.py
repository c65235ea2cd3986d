"""What a search may choose from: a range or a list for some of a training's settings. Pure.

A space is a TOML file whose keys are settings of `FitConfig`, by their names:

    lr = {low = 0.001, high = 0.1, log = true}
    epochs = {low = 32, high = 128}                     # whole numbers, both ends included
    batch_size = [32, 64, 128, 256, 512]
    loss = ["cross-entropy", "ordinal"]
    optimizer = "sgd"                                   # one value: the same in every trial

A range that is searched as a grid says in how many `steps`.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from bintally.errors import UsageError
from training.config import FitConfig

__all__ = ["ORIGINAL", "Choice", "Dimension", "Range", "Space", "parse_space"]


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones where both are."""

    low: float
    high: float
    log: bool = False
    """Drawn evenly on a logarithmic scale."""
    steps: int = 0
    """How many of them a grid has."""

    def points(self) -> list[float]:
        """Those of a grid, from the lowest to the highest."""
        if self.steps == 1:
            return [self.low]
        shares = [step / (self.steps - 1) for step in range(self.steps)]
        if self.log:
            values = [self.low * (self.high / self.low) ** share for share in shares]
        else:
            values = [self.low + (self.high - self.low) * share for share in shares]
        return list(dict.fromkeys(map(round, values))) if self.whole else values

    @property
    def whole(self) -> bool:
        """Whether its numbers are whole ones."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def ends(self) -> list[float]:
        """Between which all of them are."""
        return [self.low, self.high]

    def to_dict(self) -> dict[str, Any]:
        """As `best.json` holds it."""
        return {"low": self.low, "high": self.high, "log": self.log}


@dataclass(frozen=True)
class Choice:
    """One of these values."""

    values: tuple[Any, ...]

    def points(self) -> list[Any]:
        """All of them."""
        return [*self.values]

    def ends(self) -> list[Any]:
        """All of them, for they have no order."""
        return [*self.values]

    def to_dict(self) -> dict[str, Any]:
        """As `best.json` holds it."""
        return {"choices": [*self.values]}


Dimension = Range | Choice


@dataclass(frozen=True)
class Space:
    """The settings that differ between trials, and those that a file fixes for all of them."""

    dimensions: Mapping[str, Dimension]
    fixed: Mapping[str, Any]

    def limited(self, num_samples: int) -> Space:
        """Without the batches that are larger than the train split, of so many samples.

        Raises `UsageError` if none is left.
        """
        dimension = self.dimensions.get("batch_size")
        if dimension is None:
            return self
        fitting: Dimension
        if isinstance(dimension, Choice):
            fitting = Choice(tuple(v for v in dimension.values if v <= num_samples))
            empty = not fitting.values
        else:
            fitting = replace(dimension, high=min(dimension.high, num_samples))
            empty = fitting.high < fitting.low
        if empty:
            raise UsageError(
                f"batch_size: every one of the space is larger than the train split, which has "
                f"{num_samples:,} samples; name a --space with smaller ones"
            )
        return Space({**self.dimensions, "batch_size": fitting}, self.fixed)

    def grid(self) -> list[dict[str, Any]]:
        """All combinations. Raises `UsageError` for a range that does not say its steps."""
        for name, dimension in self.dimensions.items():
            if isinstance(dimension, Range) and dimension.steps < 1:
                raise UsageError(
                    f"--algorithm grid: {name} is a range; give it steps in --space, or a list"
                )
        names = [*self.dimensions]
        points = (dimension.points() for dimension in self.dimensions.values())
        return [dict(zip(names, values, strict=True)) for values in product(*points)]

    def to_dict(self) -> dict[str, Any]:
        """As `best.json` holds it: the dimensions."""
        return {name: dimension.to_dict() for name, dimension in self.dimensions.items()}


ORIGINAL = Space(
    {
        "lr": Range(0.001, 0.1, log=True),
        "batch_size": Choice((32, 64, 128, 256, 512)),
        "epochs": Range(32, 128),
    },
    {},
)
"""What the original capstone searched."""

NOT_SEARCHED = {
    "shards",
    "run",
    "where",
    "resume",
    "restart",
    "preset",
    "trainable",
    "best_metric",
    "track",
    "stop_on",
    "mirror",
    "device",
    "engine",
    "decode_threads",
    "cache",
    "cache_gib",
    "downloads",
    "lanes",
    "window",
    "seed",
}
"""Settings that are the search's own, or no matter of a trial's result."""


def parse_space(text: str, name: str) -> Space:
    """The space that a TOML file holds; `name` is the file's, for errors.

    Raises `UsageError` for what is no space: a setting that there is not, an empty range.
    """
    try:
        entries = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"--space {name}: not TOML: {error}") from error
    known = {field.name: field.type for field in fields(FitConfig)}
    dimensions: dict[str, Dimension] = {}
    fixed: dict[str, Any] = {}
    for key, value in entries.items():
        where = f"--space {name}: {key}"
        if key not in known or key in NOT_SEARCHED:
            able = ", ".join(sorted(known.keys() - NOT_SEARCHED))
            raise UsageError(f"{where} cannot be searched; what can be: {able}")
        if isinstance(value, list):
            if not value:
                raise UsageError(f"{where}: an empty list leaves nothing to choose")
            dimensions[key] = Choice(tuple(value))
        elif isinstance(value, dict):
            dimensions[key] = _range(value, where)
        else:
            fixed[key] = value
        for one in [value] if key in fixed else dimensions[key].ends():
            _check_type(one, str(known[key]), where)
    if not dimensions:
        raise UsageError(f"--space {name}: names nothing to search; give a range or a list")
    return Space(dimensions, fixed)


def _range(value: Mapping[str, Any], where: str) -> Range:
    ends: list[Any] = [value.get("low"), value.get("high")]
    log, steps = value.get("log", False), value.get("steps", 0)
    right = isinstance(log, bool) and isinstance(steps, int) and not isinstance(steps, bool)
    right = right and not value.keys() - {"low", "high", "log", "steps"}
    if not (right and all(map(_is_number, ends)) and steps >= 0):
        raise UsageError(f"{where}: a range is {{low = …, high = …}}, with log or steps if wanted")
    dimension = Range(value["low"], value["high"], log, steps)
    if not (dimension.low <= dimension.high and all(map(math.isfinite, ends))):
        raise UsageError(f"{where}: its low end, {dimension.low}, is above {dimension.high}")
    if dimension.log and dimension.low <= 0:
        raise UsageError(f"{where}: a logarithmic range begins above 0, not at {dimension.low}")
    return dimension


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_type(value: object, annotation: str, where: str) -> None:
    """Raises `UsageError` where a value is not of its setting's type."""
    fitting = {
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": _is_number(value),
        "bool": isinstance(value, bool),
    }.get(annotation, isinstance(value, str))
    if not fitting:
        wanted = {"int": "whole numbers", "float": "numbers", "bool": "true or false"}
        raise UsageError(f"{where}: takes {wanted.get(annotation, 'words')}, not {value!r}")
