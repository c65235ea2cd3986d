"""Counting the items in photos that are no part of a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bintally.command import UsageError
from training.checkpoint import read_checkpoint
from training.config import DeviceName, EngineName
from training.distributed import joined
from training.engine import first_undecodable, make_engine

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["predict"]

BATCH_SIZE = 32


def predict(
    checkpoint_file: Path, photos: Sequence[Path], *, device: DeviceName, engine: EngineName
) -> Iterator[dict[str, Any]]:
    """An answer for each photo, in order: `image`, `count`, `confidence` (the probability of that
    count), `expected` (the mean of the counts' probabilities) and `probabilities` by count.

    A photo that cannot be read or decoded gets an `error` instead. Raises `UsageError` for a file
    that is no checkpoint.
    """
    import numpy as np
    import torch

    checkpoint, _ = read_checkpoint(checkpoint_file)
    model, preprocessing = checkpoint.build()
    with joined(device) as process:
        if process.world_size > 1:
            raise UsageError("predict runs on one process, not under torchrun")
        model.to(process.device)
        decoder = make_engine(engine, preprocessing, process.device, BATCH_SIZE)
        remaining = iter(photos)
        while chunk := list(islice(remaining, BATCH_SIZE)):
            read = [_read(path) for path in chunk]
            good = [data for data in read if not isinstance(data, str)]
            answers: Iterator[Any] = iter(())
            if good:
                (images,) = decoder.run([(good, np.zeros(len(good), bool))])
                with torch.inference_mode():
                    answers = iter(model(images).float().softmax(1).cpu().tolist())
            for path, data in zip(chunk, read, strict=True):
                if isinstance(data, str):
                    yield {"image": str(path), "error": data}
                    continue
                by_count = dict(zip(checkpoint.classes, next(answers), strict=True))
                count = max(by_count, key=lambda c: by_count[c])
                yield {
                    "image": str(path),
                    "count": count,
                    "confidence": by_count[count],
                    "expected": sum(c * p for c, p in by_count.items()),
                    "probabilities": {str(c): p for c, p in by_count.items()},
                }


def _read(path: Path) -> NDArray[np.uint8] | str:
    """A photo's bytes, or why it is none."""
    import numpy as np

    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "not a JPEG that decodes" if first_undecodable([data]) == 0 else data
