"""This process among those of a run: one of `torchrun`'s or Ray Train's, or the only one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from bintally.command import UsageError
from training.config import DeviceName

__all__ = ["Agreement", "Process", "alone", "joined"]

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """Where this process stands among its peers."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    host_group: Any = None
    """The same processes once more, to exchange what is on the host without asking a device."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def is_first_here(self) -> bool:
        """Whether this is the first process of its machine."""
        return self.local_rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' `values`, on each of them. In place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def average(self, values: Sequence[torch.Tensor]) -> None:
        """Makes each of `values` the mean of all processes'. In place, on all to the same bits."""
        if self.world_size == 1 or not values:
            return
        mean = self.sum(torch.cat([value.flatten() for value in values])) / self.world_size
        ends = accumulate(value.numel() for value in values)
        parts = [
            mean[end - v.numel() : end].view_as(v) for v, end in zip(values, ends, strict=True)
        ]
        torch._foreach_copy_([*values], parts)

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.world_size > 1:
            dist.barrier(group=self.host_group)

    def any(self, wish: bool) -> bool:
        """Whether any process says so; the same answer on each of them."""
        if self.world_size == 1:
            return wish
        votes = torch.tensor([int(wish)])
        dist.all_reduce(votes, group=self.host_group)
        return bool(votes.item())

    def share(self, value: T | None, source: int = 0) -> T:
        """What the process `source` has; None is what the others give."""
        box = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=source, group=self.host_group)
        assert box[0] is not None
        return box[0]


class Agreement:
    """What any process wants of all of them, told a step later: nobody waits, all act together."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._pending: tuple[Any, torch.Tensor] | None = None

    def exchange(self, wishes: Sequence[bool]) -> list[bool]:
        """Tells this step's wishes and returns the last step's, of all processes.

        A process that is alone gets its own back at once.
        """
        if self._process.world_size == 1:
            return [*wishes]
        agreed = self.settle() or [False] * len(wishes)
        votes = torch.tensor([int(wish) for wish in wishes])
        work = dist.all_reduce(votes, group=self._process.host_group, async_op=True)
        self._pending = work, votes
        return agreed

    def settle(self) -> list[bool]:
        """What was told and not yet returned, if anything was."""
        if self._pending is None:
            return []
        work, votes = self._pending
        self._pending = None
        work.wait()
        return [bool(vote) for vote in votes.tolist()]


def alone(device: DeviceName) -> Process:
    """A process without peers, on `device`, which is settled already."""
    return Process(0, 1, 0, torch.device("cuda", 0) if device == "cuda" else torch.device("cpu"))


@contextmanager
def joined(device: DeviceName) -> Iterator[Process]:
    """Joins the processes that `torchrun` or Ray Train started, for the time of the context."""
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
    if world_size == 1:
        yield Process(rank, world_size, local_rank, place)
        return
    # Ray Train's workers have joined already.
    ours = not dist.is_initialized()
    if ours:
        store, _, _ = next(rendezvous("env://"))
        # torchrun's store outlives a restart: without a prefix of its own, a process may read the
        # address of a peer that has died.
        attempt = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{world_size}"
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            store=dist.PrefixStore(attempt, store),  # type: ignore[attr-defined]
            rank=rank,
            world_size=world_size,
        )
    host_group = dist.new_group(backend="gloo")
    try:
        yield Process(rank, world_size, local_rank, place, host_group)
    finally:
        if ours:
            dist.destroy_process_group()
        else:
            dist.destroy_process_group(host_group)
