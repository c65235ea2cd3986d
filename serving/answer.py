"""What is said about a photo: pure functions of a model's probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bintally.counting.decision import Answer, DecisionRule, Scores
from bintally.dataset.labels import Classes

__all__ = ["SURE", "Counted", "check_quantity", "make_answer"]


@dataclass(frozen=True)
class Counted:
    """What a worker says of a photo."""

    model: str
    """sha256 of the checkpoint that counted it."""
    classes: Classes
    """Class i is the count, or name, `classes[i]`."""
    rule: DecisionRule
    """The checkpoint's."""
    scores: Scores


SURE = 0.8
"""A verdict less sure than this is none. Where probabilities are calibrated, four in five of the
verdicts with just this confidence are right."""


def make_answer(
    probabilities: list[float],
    classes: Classes,
    rule: DecisionRule,
    expected_quantity: int | None,
) -> dict[str, Any]:
    """What `Answer` holds; with a quantity to compare with, what `check_quantity` says, too."""
    answer = Answer.of(probabilities, classes, rule)
    if expected_quantity is None:
        return answer.to_dict()
    return answer.to_dict() | check_quantity(answer, expected_quantity)


def check_quantity(answer: Answer, expected_quantity: int) -> dict[str, Any]:
    """Is the quantity that inventory expects what the photo shows?

    `matches` says whether it is the count. `verdict` is `match` or `mismatch` where the probability
    that this is right, `verdict_confidence`, is at least `SURE`, and `unsure` elsewhere: a count
    that the mean or the median decides on is no surer than it is probable. Of a quantity that is
    none of its classes a model knows nothing, nor where they are names: `matches` and the
    confidence are None then.
    """
    checked: dict[str, Any] = {"expected_quantity": expected_quantity}
    if expected_quantity not in answer.probabilities:
        return checked | {"matches": None, "verdict": "unsure", "verdict_confidence": None}
    matches = answer.count == expected_quantity
    probability = answer.probabilities[expected_quantity]
    # Rounding may leave a sum of probabilities a hair away from one.
    confidence = probability if matches else max(0.0, 1.0 - probability)
    verdict = ("match" if matches else "mismatch") if confidence >= SURE else "unsure"
    return checked | {"matches": matches, "verdict": verdict, "verdict_confidence": confidence}
