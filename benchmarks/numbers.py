"""The numbers of the results files, by name: `loader/ours, CPU engine/photos_per_s`.

A name begins with a file, without its `.json`: what a benchmark wrote for one kind of hardware, or
`measured` beside it (what was measured by hand, with how), or `gpu` (all that `make gpu` measured),
or `published` (what others say, with where). `scaling` is what the model makes of those. The words
after it lead down into the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bintally.errors import WorkError

__all__ = ["HARDWARE", "RESULTS", "Numbers", "UnknownNumber", "duration", "form", "read_results"]

RESULTS = Path(__file__).parent / "results"
HARDWARE = "2-core-amd-epyc"
"""Where the README's numbers were measured."""
GPU = "nvidia-h200"
"""And those on a GPU."""
PUBLISHED = "published"
DURATION = "time"
"""The format of seconds for people: 54 s, 4 min, 7.3 h."""
FALLBACK = ",.0f"


class UnknownNumber(WorkError):
    """No results file has the number."""


class Numbers:
    """What the files hold, by their names."""

    def __init__(self, files: Mapping[str, Any]) -> None:
        self.files = files

    def get(self, name: str) -> float:
        """The number of that name, or a quotient, `A ÷ B` or `A ÷ 1000`; else `UnknownNumber`."""
        dividend, divided, divisor = name.partition(" ÷ ")
        if divided:
            return self.get(dividend) / (float(divisor) if divisor.isdigit() else self.get(divisor))
        found = _number(self.find(name))
        if found is None:
            raise UnknownNumber(f"{name}: not a number")
        return found

    def find(self, name: str) -> Any:
        """What lies under a name, a number or more; else `UnknownNumber`."""
        file, *steps = name.split("/")
        if file not in self.files:
            raise UnknownNumber(f"{name}: there is no {file}.json")
        value = self.files[file]
        for number, step in enumerate(steps, 1):
            value = _below(value, step)
            if value is None:
                where = "/".join([file, *steps[: number - 1]])
                raise UnknownNumber(f"{name}: nothing is called {step!r} in {where}")
        return value


def _below(value: Any, step: str) -> Any:
    """A contestant's name leads past `contestants`, a metric's past `metrics`."""
    if isinstance(value, Mapping):
        if step in value:
            return value[step]
        for inner in ("contestants", "metrics"):
            if inner in value:
                return _below(value[inner], step)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if step.isdigit() and int(step) < len(value):
            return value[int(step)]
        return next((item for item in value if _name(item) == step), None)
    return None


def _name(item: Any) -> object:
    return item.get("name") if isinstance(item, Mapping) else None


def _number(value: Any) -> float | None:
    if isinstance(value, Mapping):
        value = value.get("median", value.get("value"))
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else None


def form(value: float, spec: str = "") -> str:
    """A number as the README writes it: by a format of Python's, or `time`.

    >>> form(1439.7), form(0.3471, ".1%"), form(13680, "time")
    ('1,440', '34.7%', '3.8 h')
    """
    if spec == DURATION:
        return duration(value)
    if spec and not re.fullmatch(r",?(\.\d)?[f%]", spec):
        raise UnknownNumber(f"{spec!r}: not a format; one is ,.0f or .1% or {DURATION}")
    return format(value, spec or FALLBACK)


def duration(seconds: float) -> str:
    """Seconds in the largest unit that keeps two digits or so."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 2 * size or unit == "s":
            count = seconds / size
            # Ten and more without a fraction: the models that this is for know no better.
            return f"{count:,.0f} {unit}" if count >= 9.95 else f"{count:.1f} {unit}"
    raise AssertionError("unreachable: every duration has seconds")


def read_results(results: Path, hardware: str) -> dict[str, Any]:
    """The JSON files of some hardware's results, and what is published, by their names."""
    paths = [results / f"{PUBLISHED}.json", *sorted((results / hardware).glob("*.json"))]
    paths += (results / GPU).glob("gpu.json")
    files: dict[str, Any] = {}
    for path in paths:
        try:
            files[path.stem] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise WorkError(f"{path}: cannot be read ({error})") from error
    return files
