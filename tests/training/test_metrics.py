"""The metrics, against a plain computation sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bintally.counting.decision import DECISION_RULES, decide
from training.metrics import (
    best_rule,
    confusion_matrix,
    count_errors,
    is_better,
    most_frequent_count,
    summarize_counts,
)

CLASSES = [0, 1, 2, 3, 4, 5]
answers = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=100)


@given(answers)
def test_metrics_are_what_a_loop_over_samples_gives(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = (np.array(side) for side in zip(*pairs, strict=True))
    summary = summarize_counts(confusion_matrix(labels, predicted, 6), CLASSES, 3)
    errors = [p - t for t, p in pairs]
    n = len(pairs)
    assert summary["samples"] == n
    assert summary["accuracy"] == pytest.approx(sum(e == 0 for e in errors) / n)
    assert summary["within_one"] == pytest.approx(sum(abs(e) <= 1 for e in errors) / n)
    assert summary["mae"] == pytest.approx(sum(abs(e) for e in errors) / n)
    assert summary["rmse"] == pytest.approx((sum(e * e for e in errors) / n) ** 0.5)
    baseline = summary["baseline"]
    assert baseline["accuracy"] == pytest.approx(sum(t == 3 for t, _ in pairs) / n)
    assert baseline["rmse"] == pytest.approx((sum((3 - t) ** 2 for t, _ in pairs) / n) ** 0.5)
    for c in CLASSES:
        own = [p for t, p in pairs if t == c]
        right = own.count(c)
        entry = summary["per_class"][c]
        assert entry["samples"] == len(own)
        assert entry["accuracy"] == (pytest.approx(right / len(own)) if own else None)
        said = sum(p == c for _, p in pairs)
        assert entry["precision"] == (pytest.approx(right / said) if said else None)


def test_distances_are_between_counts_and_not_between_class_indices() -> None:
    matrix = confusion_matrix(np.array([0]), np.array([1]), 2)
    assert summarize_counts(matrix, [2, 7], 7)["mae"] == 5


def test_the_published_majority_baseline_comes_out() -> None:
    """Always answering 3 on ABID's counts 0 to 5: 24.96% and RMSE 1.352."""
    counts = [9_701, 41_147, 76_863, 90_058, 80_550, 62_448]
    matrix = np.diag(np.array(counts))
    baseline = summarize_counts(matrix, CLASSES, 3)["baseline"]
    assert baseline["accuracy"] == pytest.approx(0.2496, abs=5e-5)
    assert baseline["rmse"] == pytest.approx(1.352, abs=5e-4)
    assert most_frequent_count({str(c): n for c, n in enumerate(counts)}) == 3


def test_no_samples_have_no_metrics() -> None:
    summary = summarize_counts(np.zeros((6, 6), np.int64), CLASSES, 3)
    assert summary["accuracy"] is None
    assert summary["baseline"]["rmse"] is None


@given(st.integers(0, 2**32 - 1), st.sampled_from(["accuracy", "within_one", "rmse", "mae"]))
def test_no_rule_is_better_than_the_best_one(seed: int, metric: str) -> None:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 6, 40)
    probabilities = draw.dirichlet(np.full(6, 0.5), 40).astype(np.float32)
    values = {
        rule: count_errors(
            confusion_matrix(labels, decide(probabilities, CLASSES, rule), 6), CLASSES
        )[metric]
        for rule in DECISION_RULES
    }
    best = best_rule(probabilities, labels, CLASSES, metric)
    wanted = (max if metric in ("accuracy", "within_one") else min)(values.values())  # type: ignore[type-var]
    assert values[best] == wanted
    if values["argmax"] == wanted:
        assert best == "argmax", "of equals, what everybody does"


def test_where_there_is_nothing_to_choose_by_the_most_probable_class_is_answered() -> None:
    shares = np.array([[0.4, 0.0, 0.3, 0.3]], np.float32)
    label = np.array([2])
    assert best_rule(shares, label, [0, 1, 2, 3], "rmse") == "mean"
    assert best_rule(shares, label, [0, 1, 2, 3], "loss") == "argmax"
    assert best_rule(shares, label, ["a", "b", "c", "d"], "accuracy") == "argmax"
    assert best_rule(shares[:0], label[:0], [0, 1, 2, 3], "rmse") == "argmax"


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_any_number_is_better_than_none(metric: str) -> None:
    nan = float("nan")
    assert is_better(metric, 0.5, nan)
    assert not is_better(metric, nan, 0.5)
    assert not is_better(metric, nan, nan)
