"""When batches are sent, and who is told what became of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence

import pytest

from serving.answer import Counted
from serving.batcher import Batcher, QueueFull, until_sent


@pytest.mark.parametrize(
    ("queued", "waited_s", "idle", "free", "wanted"),
    [
        (0, 0.0, 2, 4, None),  # nothing to send
        (1, 0.0, 2, 4, 0.0),  # an idle worker gains nothing by waiting
        (1, 0.0, 1, 3, 0.0),
        (3, 0.002, 0, 2, 0.003),  # all are busy: wait for company,
        (3, 0.006, 0, 2, 0.0),  # but not for ever,
        (8, 0.0, 0, 2, 0.0),  # nor once the batch is full
        (8, 9.0, 0, 0, None),  # as many are on their way as workers take
    ],
)
def test_a_batch_goes_when_it_is_full_or_late_or_a_worker_is_idle(
    queued: int, waited_s: float, idle: int, free: int, wanted: float | None
) -> None:
    seconds = until_sent(queued, waited_s, idle, free, max_batch=8, max_wait_s=0.005)
    assert seconds == pytest.approx(wanted) if wanted is not None else seconds is None


class OneWorker:
    """Counts two batches at a time, when it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.go = asyncio.Event()
        self._places = 2

    @property
    def idle(self) -> int:
        return self._places == 2

    @property
    def free(self) -> int:
        return self._places

    def count(self, photos: Sequence[bytes]) -> Awaitable[Sequence[Counted | BaseException]]:
        self._places -= 1
        return self._count(photos)

    async def _count(self, photos: Sequence[bytes]) -> Sequence[Counted | BaseException]:
        self.batches.append([*photos])
        await self.go.wait()
        self._places += 1
        return [
            RuntimeError("lost")
            if photo == b"bad"
            else Counted("m", [0, 1], "argmax", [len(photo), 0.0])
            for photo in photos
        ]

    def batcher(self, max_queue: int = 100) -> Batcher:
        return Batcher(self, max_batch=3, max_wait_s=0.0, max_queue=max_queue)


def test_every_photo_gets_its_own_answer_in_order() -> None:
    async def scenario() -> None:
        worker = OneWorker()
        batcher = worker.batcher()
        sizes = list(range(1, 12))
        futures = batcher.submit([b"x" * size for size in sizes])
        worker.go.set()
        answers = await asyncio.gather(*futures)
        assert [int(answer.scores[0]) for answer in answers] == sizes
        assert [len(batch) for batch in worker.batches] == [3, 3, 3, 2]

    asyncio.run(scenario())


def test_a_failure_is_told_to_its_photo_and_to_nobody_else() -> None:
    async def scenario() -> None:
        worker = OneWorker()
        batcher = worker.batcher()
        futures = batcher.submit([b"1", b"bad", b"3", b"4"])
        worker.go.set()
        results = await asyncio.gather(*futures, return_exceptions=True)
        failed = [isinstance(result, RuntimeError) for result in results]
        assert failed == [False, True, False, False]

    asyncio.run(scenario())


def test_a_full_queue_takes_all_photos_of_a_request_or_none() -> None:
    async def scenario() -> None:
        worker = OneWorker()
        batcher = worker.batcher(max_queue=4)
        futures = batcher.submit([b"x"] * 4)  # they go at once, in two batches
        assert batcher.queued == 0
        futures += batcher.submit([b"x"] * 3)
        with pytest.raises(QueueFull):
            batcher.submit([b"x"] * 2)
        assert batcher.queued == 3
        worker.go.set()
        await asyncio.gather(*futures)

    asyncio.run(scenario())


def test_what_nobody_waits_for_any_more_is_not_counted() -> None:
    async def scenario() -> None:
        worker = OneWorker()
        batcher = worker.batcher()
        first = batcher.submit([b"a"] * 6)
        for future in batcher.submit([b"gone"] * 4):
            future.cancel()
        last = batcher.submit([b"z"])
        worker.go.set()
        await asyncio.gather(*first, *last)
        assert b"gone" not in [photo for batch in worker.batches for photo in batch]
        assert batcher.queued == 0

    asyncio.run(scenario())
