"""The bodies of requests, read within limits of size, time and memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from serving.config import Limits
from serving.http.refusal import Refusal

__all__ = ["Bodies"]

DROP_BYTES = 4096
"""Pieces of a body that are smaller are put together."""


@dataclass(eq=False)
class _Body:
    deadline: asyncio.Timeout
    pieces: list[bytes] = field(default_factory=list)
    size_bytes: int = 0
    gave_way: bool = False

    def add(self, chunk: bytes) -> None:
        if self.pieces and len(self.pieces[-1]) + len(chunk) <= DROP_BYTES:
            self.pieces[-1] += chunk
        else:
            self.pieces.append(chunk)


class Bodies:
    """What requests hold that are being read or answered. Belongs to one event loop.

    Where that is too much, the request gives way that has been coming for the longest time: a few
    senders who stop in the middle keep nobody else out.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held_bytes = 0
        self._coming: dict[_Body, None] = {}
        """In the order in which they began."""

    @contextlib.asynccontextmanager
    async def receive(
        self, stream: AsyncIterator[bytes], announced: str | None = None
    ) -> AsyncIterator[bytes]:
        """Reads a body, which counts as held until the context ends; its head may have `announced`
        how many bytes it has.

        Raises `Refusal` where a limit is passed, by what is announced before anything is read.
        """
        if announced is not None and int(announced) > self._limits.body_bytes:
            raise self._too_large()
        body = _Body(asyncio.timeout(self._limits.receive_s))
        self._coming[body] = None
        try:
            await self._read(body, stream)
            del self._coming[body]
            whole = [b"".join(body.pieces)]
            body.pieces.clear()
            # Nothing of it is kept here: of Base64, what it says is enough.
            yield whole.pop()
        finally:
            self._coming.pop(body, None)
            self.held_bytes -= body.size_bytes

    async def _read(self, body: _Body, stream: AsyncIterator[bytes]) -> None:
        try:
            async with body.deadline:
                async for chunk in stream:
                    if not body.gave_way:
                        body.size_bytes += len(chunk)
                        self.held_bytes += len(chunk)
                        body.add(chunk)
                        self._make_room(body)
        except TimeoutError:
            if body.gave_way:
                raise _busy("the slowest of too many requests gives way; send it again") from None
            raise Refusal(
                408, f"the request did not come within {self._limits.receive_s:g} s", close=True
            ) from None

    def _make_room(self, body: _Body) -> None:
        limits = self._limits
        if body.size_bytes > limits.body_bytes:
            raise self._too_large()
        while self.held_bytes > limits.held_bytes:
            slowest = next(iter(self._coming))
            if slowest is body:
                raise _busy("too many photos are waiting; come again")
            # Now, and not when its task comes to run: others come at the same moment.
            del self._coming[slowest]
            self.held_bytes -= slowest.size_bytes
            slowest.size_bytes, slowest.gave_way = 0, True
            slowest.pieces.clear()
            slowest.deadline.reschedule(asyncio.get_running_loop().time())

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the request has more than {self._limits.body_bytes:,} bytes")


def _busy(reason: str) -> Refusal:
    return Refusal(429, reason, retry_after_s=1, close=True)
