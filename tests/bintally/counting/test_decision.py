"""What is decided of probabilities: exact, and the same whoever computes it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bintally.counting.decision import DECISION_RULES, PARTS, Answer, Decision, DecisionRule, decide

COUNTS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=8, unique=True).map(sorted)
SHARES = st.lists(st.floats(0, 1, width=32), min_size=8, max_size=8)
ROWS = st.lists(SHARES, min_size=1, max_size=6)


def exactly(row: NDArray[np.float32], classes: list[int], rule: DecisionRule) -> int:
    """The class that a rule means, in exact fractions."""
    if rule == "argmax":
        return int(row.argmax())
    parts = [round(Fraction(float(share)) * PARTS) for share in row]
    if not sum(parts):
        return 0
    if rule == "median":
        return next(i for i in range(len(parts)) if 2 * sum(parts[: i + 1]) >= sum(parts))
    mean = Fraction(sum(p * c for p, c in zip(parts, classes, strict=True)), sum(parts))
    return min(range(len(classes)), key=lambda i: (abs(classes[i] - mean), classes[i]))


@given(ROWS, COUNTS, st.sampled_from(DECISION_RULES))
def test_each_photo_is_decided_exactly_and_by_itself(
    rows: list[list[float]], classes: list[int], rule: DecisionRule
) -> None:
    shares = np.array(rows, np.float32)[:, : len(classes)]
    shares /= np.maximum(1, shares.sum(axis=1, keepdims=True))
    indices = decide(shares, classes, rule)
    assert indices.tolist() == [exactly(row, classes, rule) for row in shares]
    for row, index in zip(shares, indices, strict=True):
        assert decide(row[None], classes, rule).tolist() == [index]
        assert decide(row[None].astype(np.float64), classes, rule).tolist() == [index]


@pytest.mark.parametrize(
    ("shares", "argmax", "mean", "median"),
    [
        ([0.0, 0.0, 1.0, 0.0], 2, 2, 2),
        ([0.4, 0.0, 0.3, 0.3], 0, 1, 2),
        # Equals, and middles: the smaller count.
        ([0.25, 0.25, 0.25, 0.25], 0, 1, 1),
        ([0.5, 0.5, 0.0, 0.0], 0, 0, 0),
        ([0.0, 0.5, 0.0, 0.5], 1, 2, 1),
    ],
)
def test_the_rules_and_which_way_their_middles_go(
    shares: list[float], argmax: int, mean: int, median: int
) -> None:
    found = [int(decide(np.array([shares]), [0, 1, 2, 3], rule)[0]) for rule in DECISION_RULES]
    assert found == [argmax, mean, median]


def test_a_mean_between_distant_counts_is_the_nearer_one() -> None:
    assert decide(np.array([[0.6, 0.0, 0.4]]), [0, 2, 10], "mean").tolist() == [1]
    assert decide(np.array([[0.3, 0.0, 0.7]]), [0, 2, 10], "mean").tolist() == [2]


@pytest.mark.parametrize("rule", DECISION_RULES)
def test_what_is_no_number_is_the_first_class(rule: DecisionRule) -> None:
    assert decide(np.full((2, 3), np.nan), [4, 5, 6], rule).tolist() == [0, 0]


def test_an_answers_confidence_is_the_probability_of_its_count() -> None:
    shares = [0.4, 0.0, 0.3, 0.3]  # 6.5 on average: the middle goes down.
    answers = [Answer.of(shares, [5, 6, 7, 8], rule) for rule in DECISION_RULES]
    assert [answer.count for answer in answers] == [5, 6, 7]
    assert [answer.confidence for answer in answers] == [0.4, 0.0, 0.3]
    assert [answer.expected for answer in answers] == pytest.approx([6.5] * 3)


@pytest.mark.parametrize(
    "wrong", [{"rule": "mode"}, {"temperature": 0.0}, {"temperature": float("nan")}, {"x": 1}]
)
def test_a_decision_of_another_kind_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Decision.from_dict(wrong)
