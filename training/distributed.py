"""This process among those of a run: one of `torchrun`'s, or the only one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from bintally.command import UsageError
from training.config import DeviceName

__all__ = ["Process", "joined"]


@dataclass(frozen=True)
class Process:
    """Where this process stands among its peers."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' `values`, on each of them. In place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def joined(device: DeviceName) -> Iterator[Process]:
    """Joins the processes that `torchrun` started, for the time of the context."""
    rank, world_size, local_rank = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no GPU here")
    place = torch.device("cuda", local_rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(place)
    if world_size > 1:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Process(rank, world_size, place)
    finally:
        if world_size > 1:
            dist.destroy_process_group()
