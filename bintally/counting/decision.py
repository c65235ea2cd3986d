"""What is said of a photo: a pure function of a model's probabilities. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from bintally.dataset.labels import Classes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["DECISION_RULES", "PARTS", "Answer", "Decision", "DecisionRule", "Scores", "decide"]

DecisionRule = Literal["argmax", "mean", "median"]
DECISION_RULES: tuple[DecisionRule, ...] = get_args(DecisionRule)

Scores = list[float] | str
"""A photo's probabilities by class, or why it could not be counted."""

PARTS = 2**30
"""Of 1, of which a probability is rounded to a whole number before it is added to others: whole
numbers have the same sum in any order, so NumPy, PyTorch, an ONNX file and a GPU decide alike. With
the largest counts that there are, twice such a sum fits in 64 bits."""


@dataclass(frozen=True)
class Decision:
    """How a checkpoint's logits become a count; what older checkpoints lack are the defaults."""

    rule: DecisionRule = "argmax"
    temperature: float = 1.0
    """What logits are divided by before the softmax: above 1 a model was too sure of itself."""

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Decision:
        """What a checkpoint holds. Raises `ValueError` or `TypeError` for what is no decision."""
        decision = cls(**value)
        if decision.rule not in DECISION_RULES:
            raise ValueError(f"no decision rule of ours: {decision.rule}")
        if not 0 < decision.temperature < math.inf:
            raise ValueError(f"no temperature: {decision.temperature}")
        return decision

    def to_dict(self) -> dict[str, Any]:
        """As a checkpoint holds it: plain types."""
        return asdict(self)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (photos, classes) to probabilities, float32, on the CPU: wherever the model is,
        evaluation and prediction have the same bits."""
        return (logits.float().cpu() / self.temperature).softmax(1)


def decide(
    probabilities: NDArray[np.floating[Any]], classes: Classes, rule: DecisionRule
) -> NDArray[np.int64]:
    """The class that each photo is answered with: (photos, classes) to indices (photos,) int64.

    `argmax` is the most probable class, of equals the first. The others need counts, ascending:
    `mean` is the count nearest to the expected one, of two equally near the smaller, so that 2.5
    becomes 2; `median` is the first count up to which the probabilities reach a half. Each photo's
    are taken as shares of their own sum.
    """
    import numpy as np

    indices: NDArray[np.int64]
    if rule == "argmax":
        indices = probabilities.argmax(axis=1)
        return indices
    # A model in disorder gives what is no number; its answer is then the first class.
    parts = np.rint(np.nan_to_num(probabilities) * PARTS).astype(np.int64)
    total = parts.sum(axis=1, keepdims=True)
    if rule == "median":
        passed = 2 * parts.cumsum(axis=1) < total
    else:
        counts = np.array(classes, np.int64)
        # Twice the mean beside each sum of two neighbours: whether it lies beyond their middle.
        passed = 2 * (parts @ counts)[:, None] > total * (counts[:-1] + counts[1:])
    indices = passed.sum(axis=1)
    return indices


@dataclass(frozen=True)
class Answer:
    """How many items a photo shows; or what it shows, where a model tells names apart."""

    count: int | None = None
    """The number of items, by the checkpoint's decision rule (see `decide`); None where there is an
    `error`, or classes are names."""
    confidence: float | None = None
    """The probability of that count, or name. Where the rule is not `argmax`, another count may
    have a higher one."""
    expected: float | None = None
    """The mean of all counts, each as often as it is probable; names have none."""
    probabilities: dict[int | str, float] = field(default_factory=dict)
    """By count, or name; calibrated, where there was a validation split to do it on."""
    error: str | None = None
    """Why the photo could not be counted."""
    label: str | None = None
    """The most probable name, where classes are names."""

    @classmethod
    def of(cls, scores: Scores, classes: Classes, rule: DecisionRule) -> Answer:
        """The answer that a photo's scores amount to; class i of them is the count, or name,
        `classes[i]`."""
        import numpy as np

        if isinstance(scores, str):
            return cls(error=scores)
        index = int(decide(np.array([scores]), classes, rule)[0])
        names: Sequence[int | str] = classes
        answer, shares = names[index], dict(zip(names, scores, strict=True))
        if isinstance(answer, str):
            return cls(confidence=scores[index], probabilities=shares, label=answer)
        expected = sum(int(count) * probability for count, probability in shares.items())
        return cls(answer, scores[index], expected, shares)

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
