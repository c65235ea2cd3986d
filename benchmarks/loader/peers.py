"""Loaders that read a format of their own: what they need is written first, and then measured.

None of them is needed by this project; those that are not installed are left out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.loader.epoch import measure, to_device
from benchmarks.loader.pixels import normalised, pixels
from benchmarks.loader.workload import BATCH_SIZE, PREPROCESSING, Batches, Settings, Workload
from benchmarks.measure import Measurement

if TYPE_CHECKING:
    import torch

__all__ = ["PEERS", "SIMPLEJPEG", "Peer"]


@dataclass(frozen=True)
class Peer:
    """A loader that somebody may have installed."""

    name: str
    module: str
    """What has to be installed."""
    distribution: str
    """Whose version is told."""
    prepare: Callable[[Workload], None]
    """Writes what it reads."""
    run: Callable[[Workload], Measurement]
    settings: Settings

    @property
    def installed(self) -> bool:
        """Whether it can be measured here."""
        return importlib.util.find_spec(self.module) is not None


def _photos(workload: Workload) -> Iterator[tuple[Path, int]]:
    """The files and classes of all photos, in an order that mixes the classes."""
    files = sorted(workload.image_folder.rglob("*.jpg"), key=lambda path: path.stem)
    return ((path, int(path.parent.name)) for path in files)


def _sample(item: Mapping[str, Any]) -> tuple[torch.Tensor, int]:
    return pixels(item["jpg"]), item["cls"]


# LitData


def _litdata_item(photo: tuple[Path, int]) -> dict[str, Any]:
    path, label = photo
    return {"jpg": path.read_bytes(), "cls": label}


def _prepare_litdata(workload: Workload) -> None:
    import litdata

    output = workload.scratch / "litdata"
    litdata.optimize(
        _litdata_item,
        list(_photos(workload)),
        str(output),
        chunk_bytes="64MB",
        num_workers=1,
        verbose=False,
    )


def _run_litdata(workload: Workload) -> Measurement:
    import litdata
    import simplejpeg  # noqa: F401
    import torch

    torch.set_num_threads(1)

    def begin() -> Batches:
        dataset = litdata.StreamingDataset(
            str(workload.scratch / "litdata"), shuffle=True, transform=_sample
        )
        loader = litdata.StreamingDataLoader(
            dataset, batch_size=BATCH_SIZE, num_workers=workload.num_workers
        )
        return normalised(iter(loader), workload)

    return measure(workload, begin)


# Mosaic Streaming


def _prepare_mosaic(workload: Workload) -> None:
    from streaming import MDSWriter

    columns = {"jpg": "bytes", "cls": "int"}
    with MDSWriter(out=str(workload.scratch / "mosaic"), columns=columns) as sink:
        for path, label in _photos(workload):
            sink.write({"jpg": path.read_bytes(), "cls": label})


def _run_mosaic(workload: Workload) -> Measurement:
    import simplejpeg  # noqa: F401
    import torch
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader

    clean_stale_shared_memory()
    torch.set_num_threads(1)

    class Photos(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return _sample(super().__getitem__(index))

    def begin() -> Batches:
        dataset = Photos(
            local=str(workload.scratch / "mosaic"), shuffle=True, batch_size=BATCH_SIZE
        )
        loader: DataLoader[Any] = DataLoader(
            dataset, batch_size=BATCH_SIZE, num_workers=workload.num_workers
        )
        return normalised(iter(loader), workload)

    return measure(workload, begin)


# SPDL


def _run_spdl(workload: Workload) -> Measurement:
    import random

    import simplejpeg  # noqa: F401
    import torch
    from spdl.pipeline import PipelineBuilder

    def read(photos: list[tuple[Path, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.stack([pixels(path.read_bytes()) for path, _ in photos])
        return images, torch.tensor([label for _, label in photos])

    torch.set_num_threads(1)
    # One more than there are cores, each with a batch: a third faster here than photo by photo.
    threads = workload.num_workers + 1

    def begin() -> Batches:
        photos = list(_photos(workload))
        random.Random(0).shuffle(photos)
        pipeline = (
            PipelineBuilder()
            .add_source(photos[i : i + BATCH_SIZE] for i in range(0, len(photos), BATCH_SIZE))
            .pipe(read, concurrency=threads, output_order="completion")
            .add_sink(4)
            .build(num_threads=threads)
        )
        with pipeline.auto_stop():
            yield from normalised(iter(pipeline), workload)

    return measure(workload, begin)


# tf.data


def _run_tf(workload: Workload, antialias: bool) -> Measurement:
    import tensorflow as tf
    import torch

    size = PREPROCESSING.image_size
    mean, std = (
        tf.constant([255 * value for value in values], tf.float32)
        for values in (PREPROCESSING.mean, PREPROCESSING.std)
    )

    def read(path: Any, label: Any) -> tuple[Any, Any]:
        photo = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        photo = tf.image.resize(photo, [size, size], antialias=antialias)
        return (tf.image.random_flip_left_right(photo) - mean) / std, label

    def begin() -> Batches:
        paths, labels = zip(*_photos(workload), strict=True)
        dataset = (
            tf.data.Dataset.from_tensor_slices(([str(path) for path in paths], list(labels)))
            .shuffle(len(paths))
            .map(read, num_parallel_calls=workload.num_workers)
            .batch(BATCH_SIZE)
            .prefetch(2)
        )
        options = tf.data.Options()
        options.deterministic = False
        # With it, the ends of epochs stall.
        options.autotune.enabled = False
        options.threading.private_threadpool_size = workload.num_workers
        batches = (
            (torch.from_numpy(photos).permute(0, 3, 1, 2), torch.from_numpy(classes).long())
            for photos, classes in dataset.with_options(options).as_numpy_iterator()
        )
        return to_device(batches, workload)

    return measure(workload, begin)


# FFCV


def _prepare_ffcv(workload: Workload) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter
    from torchvision.datasets import ImageFolder

    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=95), "label": IntField()}
    writer = DatasetWriter(str(workload.scratch / "photos.beton"), fields, num_workers=1)
    writer.from_indexed_dataset(ImageFolder(str(workload.image_folder), allow_empty=True))


def _run_ffcv(workload: Workload) -> Measurement:
    import numpy as np
    import torch
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import (
        NormalizeImage,
        RandomHorizontalFlip,
        Squeeze,
        ToTensor,
        ToTorchImage,
    )

    size = PREPROCESSING.image_size
    mean, std = (np.array(v) * 255 for v in (PREPROCESSING.mean, PREPROCESSING.std))

    def begin() -> Batches:
        # The crop is the whole photo: FFCV has no plain resize that stretches.
        whole = RandomResizedCropRGBImageDecoder((size, size), scale=(1, 1), ratio=(1, 1))
        loader = Loader(
            str(workload.scratch / "photos.beton"),
            batch_size=BATCH_SIZE,
            num_workers=workload.num_workers,
            order=OrderOption.RANDOM,
            drop_last=False,
            pipelines={
                "image": [
                    whole,
                    RandomHorizontalFlip(),
                    NormalizeImage(mean, std, np.float32),
                    ToTensor(),
                    ToTorchImage(),
                ],
                "label": [IntDecoder(), ToTensor(), Squeeze()],
            },
        )
        # Its memory is written again soon after.
        batches = ((images.clone(), labels.clone().long()) for images, labels in loader)
        return to_device(batches, workload)

    torch.set_num_threads(1)
    return measure(workload, begin)


def _nothing(workload: Workload) -> None:
    """It reads the files that ImageFolder reads."""


SIMPLEJPEG: Settings = {
    "decode": "simplejpeg (libjpeg-turbo), at half its size where twice what is needed is left",
    "resize": "PyTorch, bytes, channels last",
    "antialiased": True,
}
"""Of those that leave it to their users."""

PEERS = (
    Peer(
        "LitData",
        "litdata",
        "litdata",
        _prepare_litdata,
        _run_litdata,
        {**SIMPLEJPEG, "order": "shuffle=True: chunks, and within a chunk"},
    ),
    Peer(
        "Mosaic Streaming",
        "streaming",
        "mosaicml-streaming",
        _prepare_mosaic,
        _run_mosaic,
        {**SIMPLEJPEG, "order": "shuffle=True (py1e)"},
    ),
    Peer(
        "SPDL",
        "spdl",
        "spdl-io",
        _nothing,
        _run_spdl,
        {**SIMPLEJPEG, "workers": "threads, a batch each", "order": "shuffled files"},
    ),
    Peer(
        "tf.data",
        "tensorflow",
        "tensorflow-cpu",
        _nothing,
        partial(_run_tf, antialias=False),
        {
            "decode": "libjpeg-turbo",
            "antialiased": False,
            "autotune": False,
            "deterministic": False,
        },
    ),
    Peer(
        "tf.data, antialiased",
        "tensorflow",
        "tensorflow-cpu",
        _nothing,
        partial(_run_tf, antialias=True),
        {"decode": "libjpeg-turbo", "antialiased": True, "autotune": False, "deterministic": False},
    ),
    Peer(
        "FFCV",
        "ffcv",
        "ffcv",
        _prepare_ffcv,
        _run_ffcv,
        {"decode": "libjpeg-turbo", "antialiased": "area", "order": "random"},
    ),
)
