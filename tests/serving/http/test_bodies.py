"""What is kept of requests while they come."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import pytest

from serving.http.bodies import Bodies
from serving.http.refusal import Refusal
from tests.serving.http.test_request import LIMITS

SMALL = replace(LIMITS, body_bytes=1000, held_bytes=1500, receive_s=0.2)


async def stream(chunks: Iterable[bytes], end: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    if end is not None:
        await end.wait()


async def read(bodies: Bodies, source: AsyncIterator[bytes]) -> bytes:
    async with bodies.receive(source) as body:
        return body


def test_a_body_comes_whole_in_whatever_pieces_and_is_held_until_it_is_answered() -> None:
    async def scenario() -> None:
        bodies = Bodies(SMALL)
        pieces = [b"x" * size for size in (1, 2, 300, 0, 5)]
        async with bodies.receive(stream(pieces)) as body:
            assert body == b"x" * 308
            assert bodies.held_bytes == 308
        assert bodies.held_bytes == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ([b"x" * 600, b"x" * 600], 413),
        ([b"x"] * 2000, 413),
    ],
)
def test_a_body_that_is_too_large_is_refused(source: list[bytes], status: int) -> None:
    async def scenario() -> None:
        bodies = Bodies(SMALL)
        with pytest.raises(Refusal) as refused:
            await read(bodies, stream(source))
        assert refused.value.status == status
        assert bodies.held_bytes == 0

    asyncio.run(scenario())


def test_a_body_that_does_not_end_is_refused() -> None:
    async def scenario() -> None:
        with pytest.raises(Refusal) as refused:
            await read(Bodies(SMALL), stream([b"x"], asyncio.Event()))
        assert refused.value.status == 408

    asyncio.run(scenario())


def test_where_memory_is_short_the_body_that_began_first_gives_way() -> None:
    async def scenario() -> None:
        bodies = Bodies(replace(SMALL, receive_s=60))
        never = asyncio.Event()
        stalled = [asyncio.create_task(read(bodies, stream([b"x" * 700], never))) for _ in range(2)]
        await asyncio.sleep(0)
        assert bodies.held_bytes == 1400
        assert await read(bodies, stream([b"y" * 300])) == b"y" * 300
        assert bodies.held_bytes == 700
        with pytest.raises(Refusal) as refused:
            await stalled[0]
        assert refused.value.status == 429
        assert not stalled[1].done()
        stalled[1].cancel()

    asyncio.run(scenario())


def test_what_is_whole_and_waits_for_its_answer_never_gives_way() -> None:
    async def scenario() -> None:
        bodies = Bodies(SMALL)
        async with bodies.receive(stream([b"x" * 900])):
            with pytest.raises(Refusal) as refused:
                await read(bodies, stream([b"y" * 900]))
            assert refused.value.status == 429
            assert bodies.held_bytes == 900

    asyncio.run(scenario())


def test_a_body_in_drops_takes_no_more_memory_than_in_one_piece() -> None:
    async def scenario() -> None:
        bodies = Bodies(replace(SMALL, body_bytes=100_000, held_bytes=100_000, receive_s=60))
        never = asyncio.Event()
        drops = (bytes([65 + i % 26, 66]) for i in range(40_000))
        reading = asyncio.create_task(read(bodies, stream(drops, never)))
        await asyncio.sleep(0)
        (body,) = bodies._coming
        assert sum(map(sys.getsizeof, body.pieces)) < 100_000
        reading.cancel()

    asyncio.run(scenario())
