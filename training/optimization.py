"""The optimiser, the schedule of its learning rate, and the average of the weights it makes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from training.config import FitConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bintally.counting.model import CountNet

__all__ = ["Average", "Schedule", "make_optimizer"]


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
    config: FitConfig, head: nn.Module, backbone: nn.Module | None
) -> torch.optim.Optimizer:
    """An optimiser of what is trained; norms and biases have no weight decay.

    `backbone` is None where it stays frozen for good. Each group of parameters has a `scale`, by
    which the schedule's learning rate is multiplied.
    """
    groups = []
    for module, scale in ((backbone, config.backbone_lr), (head, 1.0)):
        parameters = [] if module is None else [*module.parameters()]
        for decay, chosen in (
            (config.weight_decay, [p for p in parameters if p.ndim > 1]),
            (0.0, [p for p in parameters if p.ndim <= 1]),
        ):
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "scale": scale})
    # One kernel for all parameters, on the CPU and on the GPU.
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.lr, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True, fused=True)


class Average:
    """The exponential moving average of a model's weights (Polyak and Juditsky 1992).

    In the first steps it follows faster, for there is nothing yet worth remembering.
    """

    def __init__(self, model: CountNet, decay: float, only_head: bool) -> None:
        """`only_head` leaves out what never changes."""
        self._decay = decay
        self._live = {
            name: value
            for name, value in model.state_dict(keep_vars=True).items()
            if value.is_floating_point() and (name.startswith("head.") or not only_head)
        }
        self.values: dict[str, Tensor] = {k: v.detach().clone() for k, v in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after a step, the first of the run being 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([*self.values.values()], [*self._live.values()], 1 - decay)

    def load(self, values: dict[str, Tensor]) -> None:
        """Goes on from what a checkpoint holds."""
        for name, value in values.items():
            self.values[name].copy_(value)

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """For the time of the context, the model has the averaged weights."""
        kept = {name: value.clone() for name, value in self._live.items()}
        self._copy(self.values)
        try:
            yield
        finally:
            self._copy(kept)

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for name, value in self._live.items():
            value.copy_(values[name])
