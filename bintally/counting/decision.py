"""What is said of a photo: pure functions of a model's probabilities. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Scores", "summarize_row"]

Scores = list[float] | str
"""A photo's probabilities by class, or why it could not be counted."""


def summarize_row(row: Sequence[float], classes: Sequence[int]) -> dict[str, Any]:
    """`count`, `confidence` (the probability of that count), `expected` (the mean of the counts'
    probabilities) and `probabilities` by count.

    Class i of `row` is the count `classes[i]`. Of equals the first one is the count, as in
    `evaluate`.
    """
    best = max(range(len(classes)), key=lambda i: row[i])
    return {
        "count": classes[best],
        "confidence": row[best],
        "expected": sum(c * p for c, p in zip(classes, row, strict=True)),
        "probabilities": {str(c): p for c, p in zip(classes, row, strict=True)},
    }
