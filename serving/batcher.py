"""Photos of many requests become batches for whatever counts them."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from serving.answer import Counted

__all__ = ["Batcher", "Counting", "QueueFull", "until_sent"]


class Counting(Protocol):
    """What counts batches: the seam between the requests and the processes with a model."""

    @property
    def idle(self) -> int:
        """Workers that have nothing to do."""

    @property
    def free(self) -> int:
        """Batches that the workers would take now."""

    def count(self, photos: Sequence[bytes]) -> Awaitable[Sequence[Counted | BaseException]]:
        """Has a batch counted: what each photo shows, or why that is not known. A place among the
        `free` is taken at once, not when this is awaited."""


class QueueFull(Exception):
    """As many photos wait as may."""


_Answer = asyncio.Future[Counted]


@dataclass(frozen=True)
class _Waiting:
    photo: bytes
    answer: _Answer
    since: float


def until_sent(
    queued: int, waited_s: float, idle: int, free: int, max_batch: int, max_wait_s: float
) -> float | None:
    """How many seconds from now the next batch is to be sent, if no photo comes in between; None
    where it has to wait for a worker.

    A full batch goes as soon as a worker can take it. A smaller one goes at once to an idle
    worker, and to a busy one when its first photo has waited long enough.
    """
    if not queued or not free:
        return None
    if queued >= max_batch or idle:
        return 0.0
    return max(0.0, max_wait_s - waited_s)


class Batcher:
    """A queue of photos in front of the workers. Belongs to one event loop."""

    def __init__(
        self,
        counting: Counting,
        *,
        max_batch: int,
        max_wait_s: float,
        max_queue: int,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        """`observe` is told the size of every batch."""
        self._counting, self._observe = counting, observe
        self._max_batch, self._max_wait_s, self._max_queue = max_batch, max_wait_s, max_queue
        self._queue: OrderedDict[_Answer, _Waiting] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def queued(self) -> int:
        """Photos that wait."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Batches that are with the workers."""
        return len(self._tasks)

    def submit(self, photos: Sequence[bytes]) -> list[_Answer]:
        """Puts photos into the queue, all or none. What is cancelled leaves it.

        Raises `QueueFull`.
        """
        if len(self._queue) + len(photos) > self._max_queue:
            raise QueueFull
        loop, now = asyncio.get_running_loop(), time.monotonic()
        waiting = [_Waiting(photo, loop.create_future(), now) for photo in photos]
        for one in waiting:
            self._queue[one.answer] = one
            one.answer.add_done_callback(lambda answer: self._queue.pop(answer, None))
        self.pump()
        return [one.answer for one in waiting]

    def pump(self) -> None:
        """Sends what is to be sent now. To be called when there is another worker."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while True:
            first = next(iter(self._queue.values()), None)
            waited_s = time.monotonic() - first.since if first is not None else 0.0
            seconds = until_sent(
                len(self._queue),
                waited_s,
                self._counting.idle,
                self._counting.free,
                self._max_batch,
                self._max_wait_s,
            )
            if seconds is None:
                return
            if seconds > 0:
                self._timer = asyncio.get_running_loop().call_later(seconds, self.pump)
                return
            batch = self._take()
            self._observe(len(batch))
            counting = self._counting.count([one.photo for one in batch])
            task = asyncio.ensure_future(_answer(batch, counting))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _take(self) -> list[_Waiting]:
        number = min(len(self._queue), self._max_batch)
        return [self._queue.popitem(last=False)[1] for _ in range(number)]

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.pump()


async def _answer(
    batch: Sequence[_Waiting], counting: Awaitable[Sequence[Counted | BaseException]]
) -> None:
    try:
        results = await counting
    except Exception as error:
        # Whatever went wrong went wrong for these photos, and for nobody else.
        results = [error] * len(batch)
    for one, result in zip(batch, results, strict=True):
        if one.answer.done():
            continue
        if isinstance(result, BaseException):
            one.answer.set_exception(result)
        else:
            one.answer.set_result(result)
