"""Evaluation: every sample of a split exactly once, on any number of processes.

A photo that does not decode has no answer. Either it ends the evaluation, or it is named, left out
of all metrics, and counted: nothing comes in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from bintally.dataset.labels import Classes
from bintally.dataset.samples import Samples
from bintally.errors import WorkError
from bintally.loading.batches import Batch, load
from bintally.loading.engine import Engine
from bintally.loading.order import evaluation_batches
from training.launch.distributed import Process
from training.metrics import confusion_matrix, summarize_counts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Evaluation", "evaluate", "evaluate_batches"]


@dataclass(frozen=True)
class Evaluation:
    """What a model answered for each sample of a split, in the split's order."""

    indices: NDArray[np.int64]
    """(samples,) which of the split they are: all whose photos decode."""
    labels: NDArray[np.int64]
    """(samples,) true class indices."""
    probabilities: NDArray[np.float32]
    """(samples, classes)."""
    loss: float
    """Mean cross-entropy, in nats."""
    left_out: int = 0
    """Samples whose photos do not decode."""

    def summarize(self, classes: Classes, baseline_count: int | str) -> dict[str, Any]:
        """The metrics, as `evaluation.json` holds them."""
        matrix = confusion_matrix(self.labels, self.predicted, len(classes))
        summary = summarize_counts(matrix, classes, baseline_count)
        return {"loss": self.loss, **summary, "left_out": self.left_out}

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(samples,) predicted class indices."""
        answers: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return answers


def evaluate(
    model: nn.Module,
    samples: Samples,
    classes: Classes,
    engine: Engine,
    process: Process,
    *,
    batch_size: int,
    precision: torch.dtype,
    left_out: set[int] | None = None,
    pause: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Runs the model over a split, the work divided between processes; all get the result.

    With `left_out`, photos that do not decode are noted there; else they raise `WorkError`.
    `pause` is called after every round of batches, on all processes as often; it may raise.
    """
    order = evaluation_batches(len(samples), batch_size, process.rank, process.world_size)
    return evaluate_batches(
        model,
        load(samples, classes, engine, order, left_out=left_out),
        len(samples),
        len(classes),
        process,
        batch_size=batch_size,
        precision=precision,
        left_out=left_out,
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
    left_out: set[int] | None = None,
    pause: Callable[[], None] = lambda: None,
) -> Evaluation:
    """As `evaluate`, on batches that are there already: this process's of `evaluation_batches`,
    without those samples that are in `left_out` when all batches have come."""
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
    omitted = torch.zeros(num_samples, dtype=torch.int64, device=device)
    omitted[[*(left_out or ())]] = 1
    for values in (labels, logits, seen, omitted):
        process.sum(values)
    if not bool((seen + (omitted > 0) == 1).all()):
        raise RuntimeError("an evaluation has to see every sample exactly once")
    answered = seen == 1
    labels, logits = labels[answered], logits[answered]
    if num_samples and not len(labels):
        raise WorkError(f"not one of the {num_samples:,} photos to evaluate on decodes")
    loss = functional.cross_entropy(logits.double(), labels, reduction="sum") / max(1, len(labels))
    return Evaluation(
        answered.nonzero()[:, 0].cpu().numpy(),
        labels.cpu().numpy(),
        logits.softmax(1).cpu().numpy(),
        float(loss),
        num_samples - len(labels),
    )
