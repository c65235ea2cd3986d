"""What is said of a photo: a pure function of a model's probabilities. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Answer", "Scores", "decide"]

Scores = list[float] | str
"""A photo's probabilities by class, or why it could not be counted."""


@dataclass(frozen=True)
class Answer:
    """How many items a photo shows."""

    count: int | None = None
    """The most probable number of items, of equals the smallest; None where there is an `error`."""
    confidence: float | None = None
    """The probability of that count."""
    expected: float | None = None
    """The mean of all counts, each as often as it is probable."""
    probabilities: dict[int, float] = field(default_factory=dict)
    """By count."""
    error: str | None = None
    """Why the photo could not be counted."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: the error alone, or all but that."""
        if self.error is not None:
            return {"error": self.error}
        return {
            "count": self.count,
            "confidence": self.confidence,
            "expected": self.expected,
            "probabilities": {str(count): share for count, share in self.probabilities.items()},
        }


def decide(scores: Scores, classes: Sequence[int]) -> Answer:
    """The answer that a photo's scores amount to; class i of them is the count `classes[i]`.

    Of equals the first one is the count, as in `evaluate`.
    """
    if isinstance(scores, str):
        return Answer(error=scores)
    best = max(range(len(classes)), key=lambda i: scores[i])
    by_count = dict(zip(classes, scores, strict=True))
    expected = sum(count * probability for count, probability in by_count.items())
    return Answer(classes[best], scores[best], expected, by_count)
