"""What a server and its workers say to each other: numbered questions and answers, pickled, over a
socket that nobody else has."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from bintally.dataset.labels import Classes
from bintally.options import EngineName, PrecisionName

__all__ = ["Load", "Photos", "Release", "WorkerSettings", "frame", "read", "receive"]

LENGTH_BYTES = 8


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker is told first."""

    gpu: bool
    engine: EngineName
    precision: PrecisionName
    batch_size: int
    threads: int
    """Of PyTorch, on a CPU."""


@dataclass(frozen=True)
class Load:
    """Count with this checkpoint from now on. Answered with `Release`, or with a `UsageError` where
    it does not work; then what was loaded before counts on."""

    file: str
    name: str
    """What the user calls the file."""


@dataclass(frozen=True)
class Release:
    """A checkpoint that was found to count."""

    sha256: str
    classes: Classes
    """Class i is the count, or name, `classes[i]`."""


@dataclass(frozen=True)
class Photos:
    """Count these. Answered with a list of `Counted`, one for each."""

    jpegs: Sequence[bytes]


def frame(message: Any) -> bytes:
    """A message as it goes over the socket."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return len(data).to_bytes(LENGTH_BYTES) + data


def read(stream: BinaryIO) -> Any:
    """The next message. Raises `EOFError` where the other side is gone."""
    length = int.from_bytes(stream.read(LENGTH_BYTES))
    data = stream.read(length)
    if not length or len(data) < length:
        raise EOFError
    return pickle.loads(data)


async def receive(reader: asyncio.StreamReader) -> Any:
    """The next message. Raises `EOFError` or `OSError` where the other side is gone."""
    length = int.from_bytes(await reader.readexactly(LENGTH_BYTES))
    return pickle.loads(await reader.readexactly(length))
