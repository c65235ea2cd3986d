"""What is said about a photo."""

from __future__ import annotations

import pytest

from bintally.counting.decision import Answer
from serving.answer import SURE, check_quantity, make_answer

CLASSES = [0, 1, 2, 5]


def test_the_count_is_a_count_and_not_an_index() -> None:
    answer = make_answer([0.1, 0.1, 0.1, 0.7], CLASSES, "argmax", None)
    assert answer["count"] == 5
    assert answer["confidence"] == 0.7
    assert answer["probabilities"] == {"0": 0.1, "1": 0.1, "2": 0.1, "5": 0.7}
    assert answer["expected"] == pytest.approx(0.1 + 0.2 + 3.5)
    assert "matches" not in answer


def test_of_equals_the_first_is_the_count_as_in_evaluate() -> None:
    assert make_answer([0.2, 0.3, 0.3, 0.2], CLASSES, "argmax", None)["count"] == 1


@pytest.mark.parametrize(
    ("shares", "quantity", "matches", "verdict", "confidence"),
    [
        ([0.0, 0.1, 0.9, 0.0], 2, True, "match", 0.9),
        ([0.0, 0.3, 0.7, 0.0], 2, True, "unsure", 0.7),
        ([0.0, 0.1, 0.9, 0.0], 1, False, "mismatch", 0.9),
        ([0.0, 0.4, 0.6, 0.0], 1, False, "unsure", 0.6),
        ([0.0, 0.0, 1.0, 0.0], 0, False, "mismatch", 1.0),
    ],
)
def test_a_verdict_is_as_sure_as_the_model(
    shares: list[float], quantity: int, matches: bool, verdict: str, confidence: float
) -> None:
    answer = make_answer(shares, CLASSES, "argmax", quantity)
    assert answer["matches"] is matches
    assert answer["verdict"] == verdict
    assert answer["verdict_confidence"] == pytest.approx(confidence)
    assert (answer["verdict"] == "unsure") == (answer["verdict_confidence"] < SURE)


def test_of_a_quantity_that_is_no_class_nothing_is_claimed() -> None:
    checked = check_quantity(Answer.of([0.0, 1.0], [0, 5], "argmax"), 17)
    assert checked["matches"] is None
    assert checked["verdict"] == "unsure"
    assert checked["verdict_confidence"] is None
