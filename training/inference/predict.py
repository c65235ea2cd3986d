"""Counting the items in a few photos that are no part of a dataset; see bulk.py for many."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bintally.counting.counter import Counter
from bintally.counting.decision import Answer
from bintally.errors import UsageError
from bintally.options import DeviceName, EngineName, PrecisionName

__all__ = ["predict"]

BATCH_SIZE = 32


def predict(
    checkpoint_file: Path,
    photos: Sequence[Path],
    *,
    device: DeviceName,
    engine: EngineName,
    precision: PrecisionName = "auto",
) -> Iterator[dict[str, Any]]:
    """An answer for each photo, in order: `image`, and what `Answer` holds.

    A photo that cannot be read or decoded gets an `error` instead. Raises `UsageError` for a file
    that is no checkpoint.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("predict runs on one process, not under torchrun")
    counter = Counter(
        checkpoint_file, device=device, engine=engine, precision=precision, batch_size=BATCH_SIZE
    )
    for begin in range(0, len(photos), BATCH_SIZE):
        chunk = photos[begin : begin + BATCH_SIZE]
        read = [_read(path) for path in chunk]
        answers = iter(counter.count([data for data in read if isinstance(data, bytes)]))
        for path, data in zip(chunk, read, strict=True):
            answer = next(answers) if isinstance(data, bytes) else Answer(error=data)
            yield {"image": str(path), **answer.to_dict()}


def _read(path: Path) -> bytes | str:
    """A photo's bytes, or why there are none."""
    try:
        return path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
