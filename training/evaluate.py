"""Evaluation: every sample of a split exactly once, on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from training.distributed import Process
from training.engine import Engine
from training.loader import Batch, load
from training.metrics import confusion_matrix, summarize
from training.order import evaluation_batches
from training.samples import Samples

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Evaluation", "evaluate", "evaluate_batches"]


@dataclass(frozen=True)
class Evaluation:
    """What a model answered for each sample of a split, in the split's order."""

    labels: NDArray[np.int64]
    """(samples,) true class indices."""
    probabilities: NDArray[np.float32]
    """(samples, classes)."""
    loss: float
    """Mean cross-entropy, in nats."""

    def summarize(self, classes: Sequence[int], baseline_count: int) -> dict[str, Any]:
        """The metrics, as `evaluation.json` holds them."""
        matrix = confusion_matrix(self.labels, self.predicted, len(classes))
        return {"loss": self.loss, **summarize(matrix, classes, baseline_count)}

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(samples,) predicted class indices."""
        answers: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return answers


def evaluate(
    model: nn.Module,
    samples: Samples,
    classes: Sequence[int],
    engine: Engine,
    process: Process,
    *,
    batch_size: int,
    precision: torch.dtype,
    pause: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Runs the model over a split, the work divided between processes; all get the result.

    `pause` is called after every round of batches, on all processes as often; it may raise.
    """
    order = evaluation_batches(len(samples), batch_size, process.rank, process.world_size)
    return evaluate_batches(
        model,
        load(samples, classes, engine, order),
        len(samples),
        len(classes),
        process,
        batch_size=batch_size,
        precision=precision,
        pause=pause,
    )


def evaluate_batches(
    model: nn.Module,
    batches: Iterable[Batch],
    num_samples: int,
    num_classes: int,
    process: Process,
    *,
    batch_size: int,
    precision: torch.dtype,
    pause: Callable[[], None] = lambda: None,
) -> Evaluation:
    """As `evaluate`, on batches that are there already: this process's of `evaluation_batches`."""
    model.eval()
    device = process.device
    # Each sample is one process's, so adding zeros from the others gives it to all, unchanged.
    labels = torch.zeros(num_samples, dtype=torch.int64, device=device)
    logits = torch.zeros(num_samples, num_classes, dtype=torch.float32, device=device)
    seen = torch.zeros(num_samples, dtype=torch.int64, device=device)
    mine = iter(batches)
    rounds = -(-num_samples // (batch_size * process.world_size))
    with torch.inference_mode():
        for _ in range(rounds):
            # In the last round there may be none left for this process.
            if (batch := next(mine, None)) is not None:
                with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                    answers = model(batch.images)
                at = torch.from_numpy(batch.indices).to(device)
                logits[at] = answers.float()
                labels[at] = batch.labels
                seen[at] += 1
            pause()
        next(mine, None)  # Lets an engine end its run, ready for the next.
    for values in (labels, logits, seen):
        process.sum(values)
    assert bool((seen == 1).all()), "every sample is evaluated exactly once"
    loss = functional.cross_entropy(logits.double(), labels, reduction="sum") / max(1, num_samples)
    return Evaluation(labels.cpu().numpy(), logits.softmax(1).cpu().numpy(), float(loss))
