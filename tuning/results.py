"""What a search leaves behind: its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Trial"]


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
    """The objective, of the best epoch; None if there is none."""
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
