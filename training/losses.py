"""The loss: cross-entropy against what a label is taken to say about each count."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from bintally.dataset.labels import Classes
from training.config import FitConfig

__all__ = ["Loss", "class_weights", "make_loss", "targets"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (batch, classes) float32 and labels (batch,) to the sum of the batch's losses."""

NEARNESS = 2.0
"""How fast an ordinal target falls off: by exp(-NEARNESS) with each item."""


def targets(config: FitConfig, classes: Classes) -> Tensor:
    """What each label asks of the answer: (classes, classes) float32, rows adding up to 1.

    Plain cross-entropy asks for the label alone. `ordinal` gives each count a share that falls off
    exponentially with its distance from the label (Díaz and Marathe, Soft Labels for Ordinal
    Regression, CVPR 2019); it needs counts. Label smoothing divides a share among all.
    """
    if config.loss == "ordinal":
        counts = torch.tensor(classes, dtype=torch.float64)
        rows = torch.softmax(-NEARNESS * (counts[:, None] - counts[None, :]).abs(), dim=1)
    else:
        rows = torch.eye(len(classes), dtype=torch.float64)
    smoothing = config.label_smoothing
    return (rows * (1 - smoothing) + smoothing / len(classes)).float()


def class_weights(class_counts: Mapping[str, int], classes: Classes) -> Tensor:
    """A weight for each class, so that all matter alike: (classes,) float32.

    Their mean over the samples is 1, so that a learning rate keeps its meaning. A class without
    samples has the weight 0.
    """
    numbers = torch.tensor([class_counts[str(c)] for c in classes], dtype=torch.float64)
    weights = torch.where(numbers > 0, 1 / numbers.clamp(min=1), 0.0)
    return (weights * numbers.sum() / (weights * numbers).sum()).float()


def make_loss(
    config: FitConfig,
    classes: Classes,
    class_counts: Mapping[str, int],
    device: torch.device,
) -> Loss:
    """The loss that `config` asks for."""
    rows = targets(config, classes).to(device)
    balanced = config.balance == "loss"
    weights = class_weights(class_counts, classes).to(device) if balanced else None

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        losses = functional.cross_entropy(logits, rows[labels], reduction="none")
        if weights is not None:
            losses = losses * weights[labels]
        return losses.sum()

    return loss
