"""What a frozen backbone makes of photos, computed once and kept for later runs.

With a frozen backbone and flips as the only augmentation there are exactly two views of a photo, so
a head can be trained on their features: the same mathematics as decoding again every epoch.

The files lie in `features/` of the cache folder (`$BINTALLY_CACHE`), below a digest of all that
decides them: dataset, backbone and its weights, preprocessing, precision, engine, kind of device.
What is written in chunks first, whole or not at all, is put together when all are there; so an
interrupted computation goes on where it was, and any number of processes share the work.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from bintally.cache import cache_folder
from bintally.command import WorkError
from bintally.places import write_atomically
from bintally.progress import Progress
from training.distributed import Process
from training.engine import Engine
from training.loader import load
from training.preprocessing import Preprocessing
from training.samples import Samples

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BATCH_SIZE", "Features", "compute_features", "features_folder"]

BATCH_SIZE = 64
"""Photos that the backbone sees at a time. Fixed, and so are the batches: a network's rounding may
depend on the batch that a photo is in."""
CHUNK = 8 * BATCH_SIZE
"""Photos whose features are written at a time."""
FORMAT = "bintally-features/2"


@dataclass(frozen=True)
class Features:
    """The features of a split's photos."""

    values: NDArray[np.float32]
    """(views, samples, features): the first view is the photo, the second its mirror image."""
    labels: NDArray[np.int64]
    """(samples,) class indices."""


def features_folder(
    dataset: str,
    backbone: nn.Module,
    preprocessing: Preprocessing,
    precision: torch.dtype,
    engine: Engine,
    device: torch.device,
) -> Path:
    """Where the features of a dataset (its sha256) lie that would come out of all this."""
    digest = hashlib.sha256()
    for name, value in sorted(backbone.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    key = {
        "format": FORMAT,
        "dataset": dataset,
        "backbone": repr(backbone),
        "weights": digest.hexdigest(),
        "preprocessing": preprocessing.to_dict(),
        "precision": str(precision),
        "engine": type(engine).__name__,
        "device": device.type,
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "features" / name


def compute_features(
    folder: Path,
    backbone: nn.Module,
    samples: Samples,
    classes: Sequence[int],
    engine: Engine,
    process: Process,
    precision: torch.dtype,
    *,
    views: int,
    pause: Callable[[], None] = lambda: None,
) -> Features:
    """The features of a split, from `folder` where they are there, else computed and kept there.

    All processes call this together and share the work. `pause` is called now and then, on all of
    them as often, and may raise to end the work; what is done by then is kept.
    """
    file = folder / f"{samples.split}-{views}.npy"
    labels = samples.all_labels(classes)
    chunks = [
        _Chunk(folder / f"{file.stem}-{number:06d}.npy", start, min(start + CHUNK, len(samples)))
        for number, start in enumerate(range(0, len(samples), CHUNK))
    ]
    if process.any(not file.exists()):
        backbone.eval()
        with Progress("features", len(chunks), "chunks") as progress:
            for round_ in range(0, len(chunks), process.world_size):
                mine = round_ + process.rank
                if mine < len(chunks) and not chunks[mine].file.exists():
                    chunks[mine].write(
                        _compute(
                            backbone,
                            samples,
                            classes,
                            engine,
                            chunks[mine],
                            views,
                            precision,
                            process,
                        )
                    )
                progress.update(min(process.world_size, len(chunks) - round_))
                pause()
        _exchange(chunks, process)
        if process.is_first_here and not file.exists():
            write_atomically(file, _npy(np.concatenate([c.read() for c in chunks], axis=1)))
        process.wait()
        for chunk in chunks if process.is_first_here else []:
            chunk.file.unlink(missing_ok=True)
    values: NDArray[np.float32] = np.load(file, mmap_mode="r")
    if values.shape[:2] != (views, len(samples)):
        raise WorkError(f"{file}: not the features of this split; remove the file")
    return Features(values, labels)


@dataclass(frozen=True)
class _Chunk:
    file: Path
    start: int
    stop: int

    def write(self, values: NDArray[np.float32]) -> None:
        write_atomically(self.file, _npy(values))

    def read(self) -> NDArray[np.float32]:
        values: NDArray[np.float32] = np.load(self.file)
        return values

    def batches(self) -> Iterator[NDArray[np.int64]]:
        for start in range(self.start, self.stop, BATCH_SIZE):
            yield np.arange(start, min(start + BATCH_SIZE, self.stop))


def _npy(values: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _compute(
    backbone: nn.Module,
    samples: Samples,
    classes: Sequence[int],
    engine: Engine,
    chunk: _Chunk,
    views: int,
    precision: torch.dtype,
    process: Process,
) -> NDArray[np.float32]:
    """(views, samples of the chunk, features)."""
    device = process.device
    parts: list[torch.Tensor] = []
    with (
        torch.inference_mode(),
        torch.autocast(device.type, precision, enabled=precision != torch.float32),
    ):
        for batch in load(samples, classes, engine, chunk.batches()):
            # Decoded once: mirroring comes last in every engine, so it gives the same pixels here.
            seen = [batch.images, batch.images.flip(3)][:views]
            parts.append(torch.stack([backbone(images).float() for images in seen]))
    return torch.cat(parts, dim=1).cpu().numpy()


def _exchange(chunks: Sequence[_Chunk], process: Process) -> None:
    """Gives every machine the chunks that another one has computed in a cache of its own."""
    for number, chunk in enumerate(chunks):
        if process.any(not chunk.file.exists()):
            owner = number % process.world_size
            data = chunk.file.read_bytes() if process.rank == owner else None
            data = process.share(data, owner)
            if process.is_first_here and not chunk.file.exists():
                write_atomically(chunk.file, data)
