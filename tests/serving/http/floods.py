"""Connections that mean ill, a crowd at a time: the server must let go of them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from tests.serving.http.hostile import request

__all__ = ["FLOODS"]

CROWD = 1100
"""More connections than the server has room for."""


@contextmanager
def _crowd(port: int, *pieces: bytes) -> Iterator[list[socket.socket]]:
    """Connections that send something, and wait."""
    with ExitStack() as stack:
        crowd = []
        for _ in range(CROWD):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            crowd.append(one)
            with suppress(OSError):
                for piece in pieces:
                    one.sendall(piece)
        yield crowd


def _silent(port: int, photos: Sequence[bytes], seconds: float) -> None:
    with _crowd(port):
        time.sleep(seconds)


def _idle(port: int, photos: Sequence[bytes], seconds: float) -> None:
    with _crowd(port, b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"):
        time.sleep(seconds)


def _heads(port: int, photos: Sequence[bytes], seconds: float) -> None:
    with _crowd(port, request(photos[0])[:60], b"\r\nX-A: %b" % (b"a" * 12_000)):
        time.sleep(seconds)


def _bodies(port: int, photos: Sequence[bytes], seconds: float) -> None:
    with _crowd(port, request(photos[0] * 40)[:-1]):
        time.sleep(seconds)


def _drops(port: int, photos: Sequence[bytes], seconds: float) -> None:
    with _crowd(port, request(photos[0])[:500]) as crowd:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for one in crowd:
                with suppress(OSError):
                    one.sendall(b"x")


def _unread(port: int, photos: Sequence[bytes], seconds: float) -> None:
    with _crowd(port) as crowd:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for one in crowd:
                with suppress(OSError):
                    one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")


def _pipelined(port: int, photos: Sequence[bytes], seconds: float) -> None:
    # Not photos: a thousand good ones fill the queue, and who comes then is told to come again.
    many = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2000 + request(photos[0]) * 2
    with _crowd(port, many):
        time.sleep(seconds)


def _upgrades(port: int, photos: Sequence[bytes], seconds: float) -> None:
    kind = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    with _crowd(port, request(b"", path="/", more=kind), bytes(100_000)):
        time.sleep(seconds)


FLOODS = {
    flood.__name__.strip("_"): flood
    for flood in (
        _silent, _idle, _heads, _bodies, _drops, _unread, _pipelined, _upgrades,
    )
}  # fmt: skip
"""By name: takes a port, photos, and for how many seconds to go on."""
