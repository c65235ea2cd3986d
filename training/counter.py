"""A checkpoint that counts: JPEG bytes to probabilities, as `evaluate` computes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bintally.photo import BadPhoto, read_header, stored
from training.checkpoint import read_checkpoint
from training.config import EngineName, PrecisionName, precision_type
from training.engine import DecodeError, first_undecodable, make_engine
from training.rows import Row

if TYPE_CHECKING:
    import torch

__all__ = ["Counter"]

UNDECODABLE = "the photo does not decode: it is damaged or cut short"


class Counter:
    """A checkpoint's model, and how photos are prepared for it."""

    def __init__(
        self,
        file: Path,
        *,
        device: torch.device,
        engine: EngineName,
        precision: PrecisionName,
        batch_size: int,
    ) -> None:
        """Loads a checkpoint, weights only. Raises `UsageError` for a file that is none."""
        import torch

        checkpoint, self.sha256 = read_checkpoint(file)
        model, preprocessing = checkpoint.build()
        self.classes = checkpoint.classes
        self._device = device
        self._precision = precision_type(precision, device)
        self._model = model.to(device)
        if self._precision != torch.float32:
            _cast_once(model, self._precision)
        self._engine = make_engine(
            engine, preprocessing, device, batch_size, half=self._precision != torch.float32
        )

    def decode(self, photos: Sequence[bytes]) -> tuple[torch.Tensor | None, list[str | None]]:
        """The model's input for the photos that decode, in order; None if none does.

        For each photo, also why it does not decode, or None. A photo that sharding would store
        otherwise (turned by its EXIF data, grey, CMYK) is prepared as it would store it.
        """
        import numpy as np

        reasons: list[str | None] = []
        good: list[Any] = []
        for photo in photos:
            try:
                data = stored(photo, read_header(photo))
            except BadPhoto as error:
                reasons.append(f"the {error}")
                continue
            except Exception:
                # Pillow reads EXIF data, and raises whatever it stumbles over.
                reasons.append(UNDECODABLE)
                continue
            reasons.append(None)
            good.append(np.frombuffer(data, np.uint8))
        while good:
            try:
                (images,) = self._engine.run([(good, np.zeros(len(good), bool))])
            except DecodeError:
                bad = [first_undecodable([photo]) == 0 for photo in good]
                if not any(bad):
                    raise
                of_good = [i for i, reason in enumerate(reasons) if reason is None]
                for position, is_bad in zip(of_good, bad, strict=True):
                    reasons[position] = UNDECODABLE if is_bad else None
                good = [photo for photo, is_bad in zip(good, bad, strict=True) if not is_bad]
            else:
                return images, reasons
        return None, reasons

    def predict(self, images: torch.Tensor) -> list[list[float]]:
        """(photos, 3, size, size) to each photo's probabilities by class, as `evaluate` has them:
        the forward pass at its precision, softmax in fp32."""
        import torch

        with (
            torch.inference_mode(),
            torch.autocast(
                self._device.type, self._precision, enabled=self._precision != torch.float32
            ),
        ):
            logits = self._model(images)
        rows: list[list[float]] = logits.float().softmax(1).cpu().tolist()
        return rows

    def count_ahead(self, batches: Iterable[Sequence[bytes]]) -> Iterator[list[Row]]:
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


def _cast_once(model: torch.nn.Module, precision: torch.dtype) -> None:
    """Stores the weights as autocast would cast them at every call, with the same results."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.to(precision)
