"""A checkpoint that counts: JPEG bytes to probabilities, as `evaluate` computes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from bintally.counting.checkpoint import read_checkpoint
from bintally.counting.decision import Answer, Decision, Scores
from bintally.dataset.photo import BadPhoto, check_photo, read_header, stored
from bintally.device import find_device, find_rank, precision_type
from bintally.loading.engines import make_engine
from bintally.options import DeviceName, EngineName, PrecisionName

if TYPE_CHECKING:
    import torch

__all__ = ["Counter", "plain_photo"]

UNDECODABLE = "the photo does not decode: it is damaged or cut short"


class Counter:
    """A checkpoint's model, and how photos are prepared for it."""

    def __init__(
        self,
        file: str | PathLike[str],
        *,
        device: DeviceName = "auto",
        engine: EngineName = "auto",
        precision: PrecisionName = "auto",
        batch_size: int = 32,
    ) -> None:
        """Loads a checkpoint (`best.pt` or `last.pt` of a run), weights only.

        `auto` is the GPU where there is one; DALI there, and libjpeg-turbo on the CPU; bf16 where
        the hardware multiplies it. `batch_size` is the most photos that go through the model at a
        time. Raises `UsageError` for a file that is no checkpoint, or a device that is not there.
        """
        import torch

        checkpoint, self.sha256 = read_checkpoint(Path(file))
        model, preprocessing = checkpoint.build()
        self.classes = checkpoint.classes
        """Class i is the count, or name, `classes[i]`."""
        self.decision = Decision.from_dict(checkpoint.decision)
        """How logits become a count."""
        self._batch_size = batch_size
        self._device = find_device(device, find_rank()[2])
        self._precision = precision_type(precision, self._device)
        self._model = model.to(self._device)
        if self._precision != torch.float32:
            _cast_once(model, self._precision)
        self._engine = make_engine(
            engine, preprocessing, self._device, batch_size, half=self._precision != torch.float32
        )

    def count(self, photos: Sequence[bytes]) -> list[Answer]:
        """How many items each photo (a JPEG's bytes) shows, in order.

        A photo that does not decode is answered with an `error`, and no count. Raises `TypeError`
        for what is no list of bytes, but of names, say.
        """
        if isinstance(photos, bytes) or not all(isinstance(photo, bytes) for photo in photos):
            raise TypeError("count takes a list of photos, each the bytes of a JPEG")
        size = self._batch_size
        batches = (photos[begin : begin + size] for begin in range(0, len(photos), size))
        return [
            Answer.of(scores, self.classes, self.decision.rule)
            for batch in self.count_ahead(batches)
            for scores in batch
        ]

    def decode(self, photos: Sequence[bytes]) -> tuple[torch.Tensor | None, list[str | None]]:
        """The model's input for the photos that decode, in order; None if none does.

        For each photo, also why it does not decode, or None. A photo that sharding would store
        otherwise (turned by its EXIF data, grey, CMYK) is prepared as it would store it.
        """
        reasons: list[str | None] = [None] * len(photos)
        good: dict[int, bytes] = {}
        for position, photo in enumerate(photos):
            try:
                good[position] = stored(photo, read_header(photo))
            except BadPhoto as error:
                reasons[position] = f"the {error}"
        try:
            return self._decode_all(good.values()), reasons
        except Exception:
            # Whatever a decoder raises for a batch, one photo or another brought it about. Or the
            # decoder is in disorder: then it would not take any.
            for position, photo in good.items():
                reasons[position] = self._why_not(photo)
            if all(reasons) and self._why_not(plain_photo()) is not None:
                raise
        return self._decode_all(p for i, p in good.items() if reasons[i] is None), reasons

    def _decode_all(self, photos: Iterable[bytes]) -> torch.Tensor | None:
        import numpy as np

        from bintally.loading.augmentation import Draws

        batch = [np.frombuffer(photo, np.uint8) for photo in photos]
        if not batch:
            return None
        (images,) = self._engine.run([(batch, Draws.nothing(len(batch)))])
        return images

    def _why_not(self, photo: bytes) -> str | None:
        """Why a photo does not decode by itself; None if it does."""
        try:
            check_photo(photo)
            self._decode_all([photo])
        except BadPhoto as error:
            return f"the {error}"
        except Exception:
            return UNDECODABLE
        return None

    def predict(self, images: torch.Tensor) -> list[list[float]]:
        """(photos, 3, size, size) to each photo's probabilities by class, as `evaluate` has them:
        the forward pass at its precision, the calibrated softmax in fp32."""
        import torch

        with (
            torch.inference_mode(),
            torch.autocast(
                self._device.type, self._precision, enabled=self._precision != torch.float32
            ),
        ):
            logits = self._model(images)
        rows: list[list[float]] = self.decision.probabilities(logits).tolist()
        return rows

    def count_ahead(self, batches: Iterable[Sequence[bytes]]) -> Iterator[list[Scores]]:
        """For each photo of each batch its probabilities by class, or why it cannot be counted;
        the next batch is decoded while the model works."""
        with ThreadPoolExecutor(1) as pool:
            decoding = None
            source = iter(batches)
            while True:
                batch = next(source, None)
                following = None if batch is None else pool.submit(self.decode, batch)
                if decoding is not None:
                    images, reasons = decoding.result()
                    rows = iter([] if images is None else self.predict(images))
                    yield [next(rows) if reason is None else reason for reason in reasons]
                if following is None:
                    return
                decoding = following


def plain_photo() -> bytes:
    """A JPEG that every decoder takes."""
    import numpy as np
    import simplejpeg

    photo: bytes = simplejpeg.encode_jpeg(np.zeros((64, 64, 3), np.uint8))
    return photo


def _cast_once(model: torch.nn.Module, precision: torch.dtype) -> None:
    """Stores the weights as autocast would cast them at every call, with the same results."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.to(precision)
