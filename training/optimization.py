"""The optimiser, and the schedule of its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.config import OptimizerName

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Schedule", "make_optimizer"]


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to a peak, then half a cosine down to zero (Loshchilov and Hutter 2017).

    A pure function of the step, so that a resumed run needs no scheduler's state.
    """

    peak: float
    warmup_steps: int
    total_steps: int

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, the first of the run being 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.peak * (1 + math.cos(math.pi * done)) / 2


def make_optimizer(
    name: OptimizerName, model: nn.Module, *, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """An optimiser of the parameters that are trained; norms and biases have no weight decay."""
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
