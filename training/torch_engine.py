"""The engine that runs everywhere: libjpeg-turbo and PyTorch, on CPU threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

from training.engine import DecodeError
from training.preprocessing import Preprocessing

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from training.engine import Photos

__all__ = ["TorchEngine"]

PREFETCH = 2
"""Batches decoded ahead of the model."""


class TorchEngine:
    """A pool of threads, each decoding and resizing a photo at a time."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device, threads: int) -> None:
        self._preprocessing = preprocessing
        self._device = device
        self._threads = threads

    def run(self, batches: Iterable[tuple[Photos, NDArray[np.bool_]]]) -> Iterator[torch.Tensor]:
        """See `Engine.run`."""
        source = iter(batches)
        with ThreadPoolExecutor(self._threads) as pool:

            def begin(photos: Photos, flips: NDArray[np.bool_]) -> _Pending:
                return [pool.submit(self._decode, photo) for photo in photos], flips

            ahead = deque(begin(*batch) for batch in islice(source, PREFETCH))
            try:
                while ahead:
                    pending = ahead.popleft()
                    ahead.extend(begin(*batch) for batch in islice(source, 1))
                    yield self._collate(*pending)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _decode(self, photo: NDArray[np.uint8]) -> torch.Tensor:
        """(image_size, image_size, 3) uint8."""
        import simplejpeg
        import torch
        from torch.nn import functional

        try:
            pixels = torch.from_numpy(simplejpeg.decode_jpeg(photo, strict=True))
        except ValueError as error:
            raise DecodeError(str(error)) from error
        # Channels last and uint8 all the way: PyTorch has a fast path for just that.
        nchw = pixels.permute(2, 0, 1).unsqueeze(0)
        size = (self._preprocessing.image_size,) * 2
        resized = functional.interpolate(nchw, size, mode="bilinear", antialias=True)
        return resized[0].permute(1, 2, 0)

    def _collate(
        self, pending: list[Future[torch.Tensor]], flips: NDArray[np.bool_]
    ) -> torch.Tensor:
        import torch

        photos = [
            photo.result().flip(1) if flip else photo.result()
            for photo, flip in zip(pending, flips, strict=True)
        ]
        batch = torch.stack(photos).permute(0, 3, 1, 2).to(self._device)
        mean = torch.tensor(self._preprocessing.mean, device=self._device).view(1, 3, 1, 1) * 255
        std = torch.tensor(self._preprocessing.std, device=self._device).view(1, 3, 1, 1) * 255
        return (batch - mean) / std


_Pending = tuple[list["Future[torch.Tensor]"], "NDArray[np.bool_]"]
