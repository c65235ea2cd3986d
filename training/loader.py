"""The loader: batches of a split in a given order, decoded ahead of the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bintally.command import WorkError
from training.engine import DecodeError, Engine, first_undecodable
from training.samples import Samples

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Indices = NDArray[np.int64]

__all__ = ["Batch", "load"]


@dataclass(frozen=True)
class Batch:
    """What the model is given at a step."""

    indices: Indices
    """(batch,) which samples of the split these are."""
    images: torch.Tensor
    """(batch, 3, size, size) float32, channels_last, on the engine's device."""
    labels: torch.Tensor
    """(batch,) int64 class indices, on the same device."""


def load(
    samples: Samples,
    classes: Sequence[int],
    engine: Engine,
    order: Iterable[Indices],
    flips: Callable[[Indices], NDArray[np.bool_]] | None = None,
) -> Iterator[Batch]:
    """The batches of `order`, each an array of sample indices; `flips` says which are mirrored.

    Raises `WorkError`, naming shard and sample, where a photo does not decode.
    """
    import numpy as np
    import torch

    ahead: deque[Indices] = deque()

    def photos() -> Iterator[tuple[list[NDArray[np.uint8]], NDArray[np.bool_]]]:
        for indices in order:
            ahead.append(indices)
            mirrored = np.zeros(len(indices), bool) if flips is None else flips(indices)
            yield [samples.photo(i) for i in indices], mirrored

    try:
        for images in engine.run(photos()):
            indices = ahead.popleft()
            labels = torch.tensor(samples.labels(indices, classes)).to(
                images.device, non_blocking=True
            )
            yield Batch(indices, images, labels)
    except DecodeError as error:
        # An engine works ahead, so the bad photo is in one of the batches on their way.
        for indices in ahead:
            bad = first_undecodable([samples.photo(i) for i in indices])
            if bad is not None:
                raise WorkError(
                    f"{samples.where(int(indices[bad]))}: the photo does not decode; it was whole "
                    "when it was written: `python -m sharding verify` lists all damage"
                ) from error
        raise WorkError(f"the engine failed: {error}") from error
