"""What a frozen backbone makes of photos, computed once and kept for later runs.

With a frozen backbone and no augmentation but flips there are at most two views of a photo, so a
head can be trained on their features: the same mathematics as decoding again every epoch.

The files lie in `features/` of the cache folder (`$BINTALLY_CACHE`), below a digest of all that
decides them: dataset, backbone and its weights, preprocessing, precision, engine, kind of device.
What is written in chunks first, whole or not at all, is put together when all are there; so an
interrupted computation goes on where it was, and any number of processes share the work.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from bintally.dataset.labels import Classes
from bintally.dataset.samples import Samples
from bintally.errors import WorkError
from bintally.loading.augmentation import id_keys
from bintally.loading.batches import does_not_decode, load, stand_in
from bintally.loading.engine import Engine, first_undecodable
from bintally.loading.preprocessing import Preprocessing
from bintally.options import OnBadSample
from bintally.storage.cache import cache_folder
from bintally.storage.folder import write_atomically
from bintally.terminal.progress import Progress, say
from training.launch.distributed import Process

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
    keys: NDArray[np.uint64]
    """(samples,) what decides whether a sample is mirrored in an epoch (`id_keys`)."""
    stand_ins: Mapping[int, int]
    """Samples that do not decode, whose values are NaN, and which ones come in their place in
    training; an evaluation leaves them out."""


def features_folder(
    dataset: str,
    backbone: nn.Module,
    preprocessing: Preprocessing,
    precision: torch.dtype,
    engine: Engine,
    device: torch.device,
) -> Path:
    """Where the features of a dataset (see `Samples.identity`) lie that all this would give."""
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
        # Another version may compute otherwise, by a bit or by more.
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm")},
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "features" / name


def compute_features(
    folder: Path,
    backbone: nn.Module,
    samples: Samples,
    classes: Classes,
    engine: Engine,
    process: Process,
    precision: torch.dtype,
    *,
    mirrored: bool = True,
    on_bad_sample: OnBadSample = "stop",
    pause: Callable[[], None] = lambda: None,
) -> Features:
    """The features of a split, from `folder` where they are there, else computed and kept there:
    where `mirrored` of both views of the photos of `train`, else of the first view alone.

    All processes call this together and share the work. `pause` is called now and then, on all of
    them as often, and may raise to end the work; what is done by then is kept. Raises `WorkError`
    where a photo does not decode and `on_bad_sample` is `stop`.
    """
    labels = samples.all_labels(classes)
    views = 2 if mirrored and samples.split == "train" else 1
    kept = _Kept(folder, samples.split, views, len(samples))
    left_out: set[int] | None = set() if on_bad_sample == "skip" else None

    def compute() -> Iterator[tuple[int, NDArray[np.float32]]]:
        return _compute(
            kept, backbone, samples, classes, engine, process, precision, left_out=left_out
        )

    if process.any(kept.whole() is None):
        _fill(kept, compute, process, pause)
    bad = kept.undecodable()
    if process.any(any(first_undecodable([samples.photo(i)]) is None for i in bad)):
        # The dataset is the same, and its copy here was mended.
        process.wait()
        if process.is_first_here:
            kept.file.unlink(missing_ok=True)
        process.wait()
        _fill(kept, compute, process, pause)
        bad = kept.undecodable()
    if bad and on_bad_sample == "stop":
        raise does_not_decode(samples, bad[0])
    stand_ins = {i: stand_in(samples, i) for i in bad}
    if samples.split == "train" and process.is_first:
        for i, other in stand_ins.items():
            say(f"{samples.where(i)}: {samples.id(other)} comes in its place")
    if (values := kept.whole()) is None:
        raise WorkError(f"{kept.file}: has been removed since it was written; run again")
    return Features(values, labels, id_keys(samples.ids), stand_ins)


@dataclass(frozen=True)
class _Kept:
    """The features of a split in a folder: one file, and before it is there, one of each chunk.

    Runs that compute the same share the folder: chunks go when the file is there, which then has
    their values.
    """

    folder: Path
    split: str
    views: int
    num_samples: int

    @property
    def file(self) -> Path:
        return self.folder / f"{self.split}-{self.views}.npy"

    @property
    def num_chunks(self) -> int:
        return -(-self.num_samples // CHUNK)

    def chunks_of(self, process: Process) -> range:
        """What a process computes: chunks that follow each other, so shards that do."""
        bounds = (
            self.num_chunks * r // process.world_size for r in (process.rank, process.rank + 1)
        )
        return range(*bounds)

    def chunk_file(self, number: int) -> Path:
        return self.folder / f"{self.file.stem}-{number:06d}.npy"

    def whole(self) -> NDArray[np.float32] | None:
        """(views, samples, features), mapped; None where it is not there, or damaged."""
        return _read(self.file, self.views, self.num_samples)

    def chunk(self, number: int) -> NDArray[np.float32] | None:
        """The same, of a chunk's samples."""
        begin, end = number * CHUNK, min((number + 1) * CHUNK, self.num_samples)
        found = _read(self.chunk_file(number), self.views, end - begin)
        if found is None and (whole := self.whole()) is not None:
            return whole[:, begin:end]
        return found

    def undecodable(self) -> list[int]:
        """Samples that have no features, for their photos did not decode."""
        whole = self.whole()
        return [] if whole is None else np.flatnonzero(np.isnan(whole[0, :, 0])).tolist()

    def finish(self) -> None:
        """Makes one file of all chunks; another run may have done so already."""
        if self.whole() is None:
            chunks = [self.chunk(number) for number in range(self.num_chunks)]
            there = [chunk for chunk in chunks if chunk is not None]
            if len(there) < len(chunks):
                raise WorkError(
                    f"{self.folder}: features have been removed since they were written; run again"
                )
            write_atomically(self.file, _npy(np.concatenate(there, axis=1)))


def _read(file: Path, views: int, num_samples: int) -> NDArray[np.float32] | None:
    try:
        values: NDArray[np.float32] = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    fits = values.dtype == np.float32 and values.ndim == 3
    return values if fits and values.shape[:2] == (views, num_samples) else None


def _npy(values: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _fill(
    kept: _Kept,
    compute: Callable[[], Iterator[tuple[int, NDArray[np.float32]]]],
    process: Process,
    pause: Callable[[], None],
) -> None:
    """Computes the chunks that are missing, and makes one file of all of them."""
    computed, written = compute(), []
    try:
        with Progress("features", kept.num_chunks, "chunks") as progress:
            mine = kept.chunks_of(process)
            for first in range(0, kept.num_chunks, process.world_size):
                at = first // process.world_size
                if at < len(mine) and kept.chunk(mine[at]) is None:
                    number, values = next(computed)
                    write_atomically(kept.chunk_file(number), _npy(values))
                    written.append(number)
                progress.update(min(process.world_size, kept.num_chunks - first))
                pause()
        next(computed, None)  # Lets an engine end its run, ready for the next.
    except WorkError:
        # Damage that a GPU's decoder does not notice is told at the end: any of them may be wrong.
        for number in written:
            kept.chunk_file(number).unlink(missing_ok=True)
        raise
    _exchange(kept, process)
    if process.is_first_here:
        kept.finish()
    process.wait()
    if process.is_first_here:
        for number in range(kept.num_chunks):
            kept.chunk_file(number).unlink(missing_ok=True)


def _compute(
    kept: _Kept,
    backbone: nn.Module,
    samples: Samples,
    classes: Classes,
    engine: Engine,
    process: Process,
    precision: torch.dtype,
    left_out: set[int] | None,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """This process's chunks that are missing: number, and (views, samples, features)."""
    todo = [number for number in kept.chunks_of(process) if kept.chunk(number) is None]
    spans = [
        np.arange(n * CHUNK, min((n + 1) * CHUNK, kept.num_samples), dtype=np.int64) for n in todo
    ]
    order = [span[at : at + BATCH_SIZE] for span in spans for at in range(0, len(span), BATCH_SIZE)]
    device = process.device
    backbone.eval()
    # One run over all of them, for shards are then streamed once.
    batches = load(samples, classes, engine, order, left_out=left_out)
    groups = groupby(batches, lambda batch: int(batch.indices[0]) // CHUNK)
    for number, span in zip(todo, spans, strict=True):
        found, group = next(groups, (None, iter(())))
        if found != number:
            raise WorkError(
                f"{samples.where(int(span[0]))}: neither it nor any of the {len(span)} photos "
                "from here on decodes"
            )
        values: NDArray[np.float32] | None = None
        for batch in group:
            with (
                torch.inference_mode(),
                torch.autocast(device.type, precision, enabled=precision != torch.float32),
            ):
                # Decoded once: mirroring comes last in every engine, so it gives the same pixels.
                seen = [batch.images, batch.images.flip(3)][: kept.views]
                features = torch.stack([backbone(images).float() for images in seen])
            if values is None:
                shape = (kept.views, len(span), features.shape[2])
                values = np.full(shape, np.nan, np.float32)
            values[:, batch.indices - span[0]] = features.cpu().numpy()
        assert values is not None, "a group has a batch"
        yield number, values
    next(groups, None)


def _exchange(kept: _Kept, process: Process) -> None:
    """Gives every machine the chunks that another one has computed in a cache of its own."""
    for number in range(kept.num_chunks):
        missing = kept.chunk(number) is None
        if process.any(missing):
            owner = ((number + 1) * process.world_size - 1) // kept.num_chunks
            data = None
            if process.rank == owner and (mine := kept.chunk(number)) is not None:
                data = _npy(mine)
            data = process.share(data, owner)
            if process.is_first_here and missing:
                write_atomically(kept.chunk_file(number), data)
