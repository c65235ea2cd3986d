"""Engines turn JPEG bytes into the model's input; all give the same pixels.

`dali` decodes, resizes, augments and normalises with NVIDIA DALI, on the GPU where there is one;
`cpu` does so with what runs everywhere (libjpeg-turbo and a compiled pass), and faster than DALI's
CPU operators.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from bintally.loading.augmentation import Draws

    Photos = Sequence[NDArray[np.uint8]]
    """JPEG bytes, each (size,) uint8."""

__all__ = ["DecodeError", "Engine", "first_undecodable"]


class DecodeError(Exception):
    """A photo of a batch that was asked for does not decode."""


class Engine(Protocol):
    """Decodes ahead of the model, on threads of its own."""

    notices_damage: bool
    """Whether it raises `DecodeError` also where it could make pixels of what is left of a photo.
    Where it does not, shards are compared with their sha256 in the epoch that first reads them."""

    def run(self, batches: Iterable[tuple[Photos, Draws]]) -> Iterator[torch.Tensor]:
        """Turns batches of photos, with what was drawn for them, into input of the model. For all
        batches of a run the same was drawn: boxes, colours, or neither.

        Yields (batch, 3, image_size, image_size) float32 (or float16, see `make_engine`) in
        channels_last layout, normalised, on the engine's device. Batches may differ in size, up to
        the engine's batch size. Raises `DecodeError` where a photo does not decode, after which a
        new run may begin.
        """


def first_undecodable(photos: Photos) -> int | None:
    """Which photo of a batch does not decode: the first such, or None."""
    import simplejpeg

    for position, photo in enumerate(photos):
        try:
            simplejpeg.decode_jpeg(photo, strict=True)
        except ValueError:
            return position
    return None
