"""Clients of a server that counts: each sends a photo, waits for the answer, sends the next."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Load", "drive"]


@dataclass(frozen=True)
class Load:
    """What a number of clients saw in a while."""

    seconds: float
    latencies_s: Sequence[float]
    """Of every request answered with 200, ascending."""
    errors: Sequence[str]
    """Of every other."""

    @property
    def per_second(self) -> float:
        return len(self.latencies_s) / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """The smallest latency that so many percent of the requests do not exceed."""
        position = math.ceil(percent / 100 * len(self.latencies_s)) - 1
        return 1e3 * self.latencies_s[max(0, position)]


def drive(port: int, photos: Sequence[bytes], clients: int, seconds: float) -> Load:
    """Sends photos to `/invocations` on this machine, from `clients` connections, in a process that
    does as little as it can: it has the same cores as the server."""
    requests = [
        b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(photo), photo)
        for photo in photos
    ]
    return asyncio.run(_drive(port, requests, clients, seconds))


async def _drive(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Load:
    latencies: list[float] = []
    errors: list[str] = []
    began = time.perf_counter()
    until = began + seconds

    async def client(number: int) -> None:
        reader = writer = None
        turn = number
        while time.perf_counter() < until:
            sent = time.perf_counter()
            try:
                if reader is None or writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(requests[turn % len(requests)])
                status = await _read_answer(reader)
            except (OSError, EOFError) as error:
                errors.append(type(error).__name__)
                reader = writer = None
                # A server that is gone would be asked a thousand times a second.
                await asyncio.sleep(0.05)
                continue
            if status == 200:
                latencies.append(time.perf_counter() - sent)
            else:
                errors.append(str(status))
            turn += clients
        if writer is not None:
            writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return Load(time.perf_counter() - began, sorted(latencies), errors)


async def _read_answer(reader: asyncio.StreamReader) -> int:
    """Reads an answer to its end; its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    await reader.readexactly(length)
    return int(head.split(b" ", 2)[1])
