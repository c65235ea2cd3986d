"""What a set of predictions is worth: pure functions of counts and predicted counts.

Where classes are names, there are no distances, and what needs them is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bintally.counting.decision import DECISION_RULES, DecisionRule, decide
from bintally.dataset.labels import Classes, are_counts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Counts = NDArray[np.int64]
    Probabilities = NDArray[np.float32]

__all__ = [
    "LOWER_IS_BETTER",
    "NEEDS_COUNTS",
    "best_rule",
    "confusion_matrix",
    "count_errors",
    "is_better",
    "most_frequent_count",
    "summarize_counts",
]


LOWER_IS_BETTER = frozenset({"loss", "rmse", "mae"})
NEEDS_COUNTS = ("rmse", "mae", "within_one")
"""What is told of counts only: how far an answer is off."""


def is_better(metric: str, value: float, than: float) -> bool:
    """Whether a metric's value is better than another one; any number is better than NaN."""
    if math.isnan(than):
        return not math.isnan(value)
    return value < than if metric in LOWER_IS_BETTER else value > than


def confusion_matrix(labels: Counts, predicted: Counts, num_classes: int) -> Counts:
    """(classes, classes) int64: rows are the true classes, columns the predicted ones."""
    import numpy as np

    flat = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def most_frequent_count(class_counts: Mapping[str, int]) -> int | str:
    """The count, or name, that most samples have, the smaller one of equals."""
    names = {int(name) if _is_count(name) else name: n for name, n in class_counts.items()}
    return min(names, key=lambda name: (-names[name], isinstance(name, str), name))


def _is_count(name: str) -> bool:
    return name.isascii() and name.isdigit() and name == (name.lstrip("0") or "0")


def count_errors(matrix: Counts, classes: Classes) -> dict[str, float | None]:
    """`accuracy`, `rmse` and `mae` (in items) and `within_one` (the share at most one item off)
    of a confusion matrix, in exact sums until the last division."""
    import numpy as np

    samples = int(matrix.sum())
    if not samples:
        return dict.fromkeys(("accuracy", *NEEDS_COUNTS))
    if not are_counts(classes):
        return {"accuracy": int(matrix.trace()) / samples, **dict.fromkeys(NEEDS_COUNTS)}
    counts = np.array(classes, np.int64)
    distance = np.abs(counts[:, None] - counts[None, :])
    return {
        "accuracy": int(matrix.trace()) / samples,
        "rmse": math.sqrt(int((matrix * distance**2).sum()) / samples),
        "mae": int((matrix * distance).sum()) / samples,
        "within_one": int(matrix[distance <= 1].sum()) / samples,
    }


def best_rule(
    probabilities: Probabilities, labels: Counts, classes: Classes, metric: str
) -> DecisionRule:
    """The decision rule whose answers are best by `metric`; of equals `argmax`, which it is too
    where classes are names, or the metric is no matter of answers.

    `probabilities` are (samples, classes), `labels` (samples,) true class indices.
    """
    best: DecisionRule = "argmax"
    if metric == "loss" or not are_counts(classes) or not len(labels):
        return best
    values: dict[str, float] = {}
    for rule in DECISION_RULES:
        answers = decide(probabilities, classes, rule)
        value = count_errors(confusion_matrix(labels, answers, len(classes)), classes)[metric]
        assert value is not None, "there are counts, and samples"
        values[rule] = value
        if is_better(metric, value, values[best]):
            best = rule
    return best


def summarize_counts(matrix: Counts, classes: Classes, baseline_count: int | str) -> dict[str, Any]:
    """The metrics of a confusion matrix, beside those of always answering `baseline_count`.

    What `count_errors` tells, and for each class how many of its samples are found and how many
    of its answers are right; None where there are no samples to tell, or classes are names and a
    metric needs counts.
    """
    import numpy as np

    constant = np.zeros_like(matrix)
    always = [str(name) for name in classes].index(str(baseline_count))
    constant[:, always] = matrix.sum(axis=1)
    per_class = []
    for i, count in enumerate(classes):
        own = np.zeros_like(matrix)
        own[i] = matrix[i]
        errors = count_errors(own, classes)
        answers = int(matrix[:, i].sum())
        per_class.append(
            {
                "count": count,
                "samples": int(matrix[i].sum()),
                "accuracy": errors["accuracy"],
                "precision": int(matrix[i, i]) / answers if answers else None,
                "rmse": errors["rmse"],
            }
        )
    return {
        "samples": int(matrix.sum()),
        **count_errors(matrix, classes),
        "classes": list(classes),
        "confusion_matrix": matrix.tolist(),
        "per_class": per_class,
        "baseline": {"count": classes[always], **count_errors(constant, classes)},
    }
