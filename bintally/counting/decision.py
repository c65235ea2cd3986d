"""What is said of a photo: a pure function of a model's probabilities. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bintally.dataset.labels import Classes

__all__ = ["Answer", "Scores", "decide"]

Scores = list[float] | str
"""A photo's probabilities by class, or why it could not be counted."""


@dataclass(frozen=True)
class Answer:
    """How many items a photo shows; or what it shows, where a model tells names apart."""

    count: int | None = None
    """The most probable number of items, of equals the smallest; None where there is an `error`, or
    classes are names."""
    confidence: float | None = None
    """The probability of that count, or name."""
    expected: float | None = None
    """The mean of all counts, each as often as it is probable; names have none."""
    probabilities: dict[int | str, float] = field(default_factory=dict)
    """By count, or name."""
    error: str | None = None
    """Why the photo could not be counted."""
    label: str | None = None
    """The most probable name, where classes are names."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: the error alone, or all but that."""
        if self.error is not None:
            return {"error": self.error}
        shares = {str(name): share for name, share in self.probabilities.items()}
        if self.label is not None:
            return {"label": self.label, "confidence": self.confidence, "probabilities": shares}
        return {
            "count": self.count,
            "confidence": self.confidence,
            "expected": self.expected,
            "probabilities": shares,
        }


def decide(scores: Scores, classes: Classes) -> Answer:
    """The answer that a photo's scores amount to; class i of them is the count, or name,
    `classes[i]`.

    Of equals the first one is the count, as in `evaluate`.
    """
    if isinstance(scores, str):
        return Answer(error=scores)
    best = max(range(len(classes)), key=lambda i: scores[i])
    names: Sequence[int | str] = classes
    answer, shares = names[best], dict(zip(names, scores, strict=True))
    if isinstance(answer, str):
        return Answer(confidence=scores[best], probabilities=shares, label=answer)
    expected = sum(int(count) * probability for count, probability in shares.items())
    return Answer(answer, scores[best], expected, shares)
