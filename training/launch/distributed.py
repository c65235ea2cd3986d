"""This process among those of a run: one of `torchrun`'s or Ray Train's, or the only one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import accumulate
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from bintally.device import find_device, find_machines, find_rank
from bintally.errors import CommandError
from bintally.options import DeviceName
from training.launch.rendezvous import JOIN_S, join_store

__all__ = ["Agreement", "Process", "alone", "joined"]

T = TypeVar("T")

COLLECTIVE = timedelta(minutes=30)
"""The most that a process waits for what another one computes alone, or fetches from afar."""

# Before PyTorch 2.15 it went by another name.
_set_timeout = getattr(distributed_c10d, "set_timeout", None) or distributed_c10d._set_pg_timeout


@dataclass(frozen=True)
class Process:
    """Where this process stands among its peers."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    num_machines: int = 1
    """Each has as many processes, whose ranks follow each other."""
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
        if box[0] is None:
            raise TypeError(f"process {source} has nothing to share")
        return box[0]

    def gather(self, value: T) -> list[T]:
        """What each process has, in the order of their ranks."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value, group=self.host_group)
        return values

    def let_first(self, work: Callable[[], T]) -> T:
        """What `work` returns, which the first process alone does, on all of them.

        Its `UsageError` or `WorkError` is raised on all of them, too.
        """
        done: list[T] = []
        failed: CommandError | None = None
        if self.is_first:
            try:
                done = [work()]
            except CommandError as error:
                failed = error
        done, failed = self.share((done, failed))
        if failed is not None:
            raise failed
        return done[0]


class Agreement:
    """What any process wants of all of them, told a step later: nobody waits, all act together.

    Wishes are whole numbers, 0 for none; the greatest counts.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._pending: tuple[Any, torch.Tensor] | None = None

    def exchange(self, wishes: Sequence[int]) -> list[int]:
        """Tells this step's wishes and returns the last step's, of all processes.

        A process that is alone gets its own back at once.
        """
        if self._process.world_size == 1:
            return [*wishes]
        agreed = self.settle() or [0] * len(wishes)
        votes = torch.tensor([int(wish) for wish in wishes])
        work = dist.all_reduce(
            votes, dist.ReduceOp.MAX, group=self._process.host_group, async_op=True
        )
        self._pending = work, votes
        return agreed

    def settle(self) -> list[int]:
        """What was told and not yet returned, if anything was."""
        if self._pending is None:
            return []
        work, votes = self._pending
        self._pending = None
        work.wait()
        agreed: list[int] = votes.tolist()
        return agreed


def alone(device: DeviceName) -> Process:
    """A process without peers, on `device`, which is settled already."""
    return Process(0, 1, 0, torch.device("cuda", 0) if device == "cuda" else torch.device("cpu"))


@contextmanager
def joined(device: DeviceName) -> Iterator[Process]:
    """Joins the processes that `torchrun` or Ray Train started, for the time of the context."""
    rank, world_size, local_rank = find_rank()
    place = find_device(device, local_rank)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if world_size == 1:
        yield Process(rank, world_size, local_rank, place)
        return
    # Ray Train's workers have joined already.
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group(
            "nccl" if place.type == "cuda" else "gloo",
            store=join_store(rank, world_size),
            rank=rank,
            world_size=world_size,
            # A peer may be lost while connections are made, and then nobody hears of it.
            timeout=timedelta(seconds=JOIN_S),
        )
    host_group: Any = dist.new_group(backend="gloo")
    if ours:
        for group in (None, host_group):
            _set_timeout(COLLECTIVE, group)
    try:
        process = Process(rank, world_size, local_rank, place, host_group=host_group)
        machines = {*process.gather(find_machines(rank, world_size))}
        yield replace(process, num_machines=machines.pop() if len(machines) == 1 else 1)
    finally:
        if ours:
            dist.destroy_process_group()
        else:
            dist.destroy_process_group(host_group)
