"""Photos of many requests become batches for the replicas.

A call of a replica costs Ray 2 to 3 ms of CPU time, whether it carries one photo or eight, so
batches are made here, in the process that has the requests, and not behind the call.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from bintally.counting.decision import Scores
from serving.answer import Counted

__all__ = ["Batcher", "QueueFull", "until_sent"]

BATCHES_PER_REPLICA = 2
"""One in the model, and one being decoded so that the model need not wait for it."""


_Answer = asyncio.Future[tuple[Counted, Scores]]


class QueueFull(Exception):
    """As many photos wait as may."""


@dataclass(frozen=True)
class _Waiting:
    photo: bytes
    answer: _Answer
    since: float


def until_sent(
    queued: int,
    waited_s: float,
    in_flight: int,
    replicas: int,
    max_batch: int,
    max_wait_s: float,
) -> float | None:
    """How many seconds from now the next batch is to be sent, if no photo comes in between; None
    where it has to wait for a batch in flight.

    A full batch goes as soon as a replica can take it. A smaller one goes at once to an idle
    replica, and to a busy one when its first photo has waited long enough.
    """
    if not queued or in_flight >= BATCHES_PER_REPLICA * replicas:
        return None
    if queued >= max_batch or in_flight < replicas:
        return 0.0
    return max(0.0, max_wait_s - waited_s)


class Batcher:
    """A queue of photos in front of the replicas. Belongs to one event loop."""

    def __init__(
        self,
        send: Callable[[Sequence[bytes]], Awaitable[Counted]],
        replicas: Callable[[], int],
        *,
        max_batch: int,
        max_wait_s: float,
        max_queue: int,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        """`send` has a batch counted, `replicas` says how many of them there are now, and `observe`
        is told the size of every batch."""
        self._send, self._replicas, self._observe = send, replicas, observe
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
        """Batches that are with the replicas."""
        return len(self._tasks)

    def submit(self, photos: Sequence[bytes]) -> list[_Answer]:
        """Puts photos into the queue, all or none. What is cancelled leaves it.

        Raises `QueueFull`. What `send` raises, the photos of that batch raise.
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
        """Sends what is to be sent now. To be called when the number of replicas has changed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while True:
            first = next(iter(self._queue.values()), None)
            waited_s = time.monotonic() - first.since if first is not None else 0.0
            seconds = until_sent(
                len(self._queue),
                waited_s,
                len(self._tasks),
                self._replicas(),
                self._max_batch,
                self._max_wait_s,
            )
            if seconds is None:
                return
            if seconds > 0:
                self._timer = asyncio.get_running_loop().call_later(seconds, self.pump)
                return
            task = asyncio.ensure_future(self._run(self._take()))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _take(self) -> list[_Waiting]:
        number = min(len(self._queue), self._max_batch)
        return [self._queue.popitem(last=False)[1] for _ in range(number)]

    async def _run(self, batch: list[_Waiting]) -> None:
        self._observe(len(batch))
        try:
            counted = await self._send([one.photo for one in batch])
            answers = [(counted, row) for row in counted.rows]
            assert len(answers) == len(batch), "a replica answers for every photo"
        except Exception as error:
            # Whatever went wrong went wrong for these photos, and for nobody else.
            for one in batch:
                if not one.answer.done():
                    one.answer.set_exception(error)
            return
        for one, answer in zip(batch, answers, strict=True):
            if not one.answer.done():
                one.answer.set_result(answer)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.pump()
