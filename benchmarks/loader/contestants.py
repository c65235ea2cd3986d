"""The loaders under test: each delivers one shuffled epoch of the same photos, the same work done.

Decode, stretch to 224×224 with antialiased bilinear interpolation, flip with probability 0.5,
normalise; float32 (batch, 3, 224, 224) on the workload's device, with the classes beside it.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.measure import Measurement, cpu_seconds, peak_memory_mib, workers_memory_mib
from bintally.errors import WorkError
from bintally.loading.preprocessing import Preprocessing

if TYPE_CHECKING:
    import torch

Batches = Iterator[tuple["torch.Tensor", "torch.Tensor"]]
"""Photos and their classes."""

__all__ = [
    "BATCH_SIZE",
    "PREPROCESSING",
    "SHUFFLE_BUFFER",
    "Workload",
    "dali_reader",
    "image_folder",
    "measure",
    "ours",
    "to_device",
    "wds",
]

BATCH_SIZE = 64
SHUFFLE_BUFFER = 1000
PREPROCESSING = Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Workload:
    """What every contestant is given."""

    shards: Path
    """The dataset's folder."""
    tars: tuple[str, ...]
    """The train split's shards and their DALI indexes."""
    indexes: tuple[str, ...]
    image_folder: Path
    """The same photos as files, a folder for each class."""
    classes: tuple[int, ...]
    class_counts: tuple[int, ...]
    """Photos of each class."""
    device: Literal["cpu", "cuda"]
    num_workers: int
    scratch: Path
    """Where what a peer reads is written."""

    @property
    def num_photos(self) -> int:
        return sum(self.class_counts)

    @property
    def num_wds_workers(self) -> int:
        """webdataset gives whole shards to workers, and fails where one gets none."""
        return min(self.num_workers, len(self.tars))


def ours(
    workload: Workload,
    engine_name: Literal["dali", "cpu"],
    threads: int | None = None,
    hardware_share: float | None = None,
) -> Measurement:
    """Our loader, through the same calls as training; the last two are for DALI on a GPU."""
    import numpy as np
    import torch

    from bintally.dataset.manifest import read_dataset
    from bintally.dataset.samples import Samples
    from bintally.loading.augmentation import Augmentation
    from bintally.loading.batches import load
    from bintally.loading.dali_engine import HARDWARE_SHARE, DaliEngine
    from bintally.loading.engines import make_engine
    from bintally.loading.lanes import EpochOrder, choose_lanes
    from bintally.storage.opening import open_place

    # Nobody's imports are measured.
    if engine_name == "dali":
        import nvidia.dali.fn
        import nvidia.dali.types  # noqa: F401
    else:
        import bintally.loading.resize  # noqa: F401

    device = torch.device("cuda", 0) if workload.device == "cuda" else torch.device("cpu")
    delivered = []

    def begin() -> Batches:
        place = open_place(workload.shards)
        samples = Samples(place, read_dataset(place), "train")
        if threads is None and hardware_share is None:
            engine = make_engine(engine_name, PREPROCESSING, device, BATCH_SIZE)
        else:
            engine = DaliEngine(
                PREPROCESSING,
                device,
                BATCH_SIZE,
                threads or workload.num_workers,
                HARDWARE_SHARE if hardware_share is None else hardware_share,
            )
        lanes, window = choose_lanes(len(samples.sizes))
        order = EpochOrder(samples.sizes, 0, 0, lanes, window).at(np.arange(len(samples)))
        batches = [order[i : i + BATCH_SIZE] for i in range(0, len(order), BATCH_SIZE)]
        augment = partial(Augmentation.named("flip").draw, seed=0, epoch=0)
        for batch in load(samples, workload.classes, engine, batches, augment):
            delivered.append(batch.indices)
            yield batch.images, batch.labels

    measured = measure(workload, begin)
    if not np.array_equal(np.sort(np.concatenate(delivered)), np.arange(workload.num_photos)):
        raise WorkError("did not deliver each sample once")
    return measured


def image_folder(workload: Workload) -> Measurement:
    """torchvision's ImageFolder with PIL, as tutorials and the original project have it."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    transform = _torchvision_transform()

    def begin() -> Batches:
        dataset = ImageFolder(str(workload.image_folder), transform, allow_empty=True)
        loader = DataLoader(
            dataset,
            batch_size=BATCH_SIZE,
            shuffle=True,
            num_workers=workload.num_workers,
            pin_memory=workload.device == "cuda",
        )
        return to_device(iter(loader), workload)

    return measure(workload, begin)


def wds(workload: Workload) -> Measurement:
    """webdataset with PIL, shuffled as its documentation does it."""
    import webdataset

    transform, class_of = _torchvision_transform(), partial(_class_of, workload.classes)

    def begin() -> Batches:
        dataset = (
            webdataset.WebDataset(list(workload.tars), shardshuffle=len(workload.tars))
            .shuffle(SHUFFLE_BUFFER)
            .decode("pil")
            .to_tuple("jpg", "cls")
            .map_tuple(transform, class_of)
            .batched(BATCH_SIZE)
        )
        loader = webdataset.WebLoader(
            dataset,
            batch_size=None,
            num_workers=workload.num_wds_workers,
            pin_memory=workload.device == "cuda",
        )
        return to_device(iter(loader), workload)

    return measure(workload, begin)


def dali_reader_pipeline(
    tars: Sequence[str],
    indexes: Sequence[str],
    *,
    on_gpu: bool,
    batch_size: int,
    threads: int,
    half: bool = False,
    resize: bool = True,
) -> Any:
    """DALI's own reader of WebDataset shards, as its examples have it; mixed decode on a GPU.

    Photos that have their size already need no `resize`. The GPU's JPEG unit takes all of them, as
    in our engine: that is the fastest here.
    """
    from nvidia.dali import fn, pipeline_def, types

    from bintally.loading.dali_engine import HARDWARE_SHARE

    size = PREPROCESSING.image_size

    @pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=batch_size, num_threads=threads, device_id=0 if on_gpu else None
    )
    def pipeline() -> Any:
        components: Any = fn.readers.webdataset(
            paths=list(tars),
            index_paths=list(indexes),
            ext=["jpg", "cls"],
            missing_component_behavior="error",
            random_shuffle=True,
            initial_fill=SHUFFLE_BUFFER,
            pad_last_batch=True,
            name="reader",
        )
        jpegs, digits = components
        images = fn.decoders.image(
            jpegs,
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
            hw_decoder_load=HARDWARE_SHARE,
        )
        if resize:
            images = fn.resize(images, size=[size, size], interp_type=types.INTERP_LINEAR)
        images = fn.crop_mirror_normalize(
            images,
            mirror=fn.random.coin_flip(probability=0.5),
            mean=[255 * m for m in PREPROCESSING.mean],
            std=[255 * s for s in PREPROCESSING.std],
            output_layout="CHW",
            dtype=types.FLOAT16 if half else types.FLOAT,
        )
        # A count has as many bytes as digits; padded with zeros, they make one tensor.
        return images, fn.pad(digits)

    return pipeline()


def dali_reader(workload: Workload, resize: bool = True) -> Measurement:
    """An epoch of `dali_reader_pipeline`."""
    import torch
    from nvidia.dali.plugin.base_iterator import LastBatchPolicy
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    # A table of a count's class; a count that is no class would be a class too many.
    table = torch.full((max(workload.classes) + 1,), len(workload.classes))
    table[list(workload.classes)] = torch.arange(len(workload.classes))

    def begin() -> Batches:
        iterator = DALIGenericIterator(
            dali_reader_pipeline(
                workload.tars,
                workload.indexes,
                on_gpu=workload.device == "cuda",
                batch_size=BATCH_SIZE,
                threads=workload.num_workers,
                resize=resize,
            ),
            ["images", "digits"],
            reader_name="reader",
            last_batch_policy=LastBatchPolicy.PARTIAL,
        )
        for (batch,) in iterator:
            counts = torch.zeros(len(batch["digits"]), dtype=torch.int64)
            for digit in batch["digits"].unbind(1):
                counts = torch.where(digit > 0, 10 * counts + digit - ord("0"), counts)
            yield batch["images"], table[counts].to(workload.device, non_blocking=True)

    return measure(workload, begin)


def measure(workload: Workload, begin: Callable[[], Batches]) -> Measurement:
    """Runs an epoch. The clock starts before the loader is made, and its imports are done then.

    Raises `WorkError` where it did not deliver what it should have.
    """
    import torch

    def now() -> float:
        # What is queued on the GPU is not yet delivered.
        if workload.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    if workload.device == "cuda":
        torch.cuda.init()
    size = PREPROCESSING.image_size
    # A worker's first batch takes what making the loader takes; all workers' come at about once.
    num_batches = -(-workload.num_photos // BATCH_SIZE)
    num_left_out = min(workload.num_workers, num_batches // 2)
    labels: list[torch.Tensor] = []
    num_delivered = num_before = 0
    first_at = counted_from = last_at = cpu_at_last = workers_mib = 0.0
    has_workers = False
    cpu_before, began = cpu_seconds(), time.perf_counter()
    for images, classes in begin():
        if images.shape[1:] != (3, size, size) or images.dtype != torch.float32:
            raise WorkError(f"delivered {images.dtype} of shape {tuple(images.shape)}")
        if images.device.type != workload.device or len(images) != len(classes):
            raise WorkError(f"delivered {len(classes)} classes and {len(images)} photos elsewhere")
        labels.append(classes)
        num_delivered += len(images)
        if len(labels) == 1:
            first_at, has_workers = now(), bool(multiprocessing.active_children())
        if len(labels) == num_left_out:
            num_before, counted_from = num_delivered, now()
        if num_delivered == workload.num_photos:
            last_at, cpu_at_last = now(), cpu_seconds()
        if len(labels) == num_batches - num_left_out:
            # A worker that has nothing left to do may be gone at the end.
            workers_mib = workers_memory_mib()
    # The time of workers is known once they have ended. In one process, what a loader has begun of
    # the next epoch, as DALI's reader does, is not this one's.
    cpu_s = (cpu_seconds() if has_workers else cpu_at_last) - cpu_before
    if num_delivered != workload.num_photos:
        raise WorkError(f"delivered {num_delivered:,} photos, not {workload.num_photos:,}")
    counted = torch.cat(labels).cpu().bincount(minlength=len(workload.classes)).tolist()
    if tuple(counted) != workload.class_counts:
        raise WorkError(f"delivered {counted} photos of the classes, not {workload.class_counts}")
    return {
        "photos_per_s": (num_delivered - num_before) / (last_at - counted_from),
        "cpu_s_per_1000": cpu_s * 1000 / num_delivered,
        "peak_memory_mib": peak_memory_mib() + workers_mib,
        "first_batch_s": first_at - began,
    }


def to_device(batches: Batches, workload: Workload) -> Batches:
    """The batches on the device that the model would be on."""
    for images, classes in batches:
        yield (
            images.to(workload.device, non_blocking=True),
            classes.to(workload.device, non_blocking=True),
        )


def _class_of(classes: tuple[int, ...], count: int) -> int:
    return classes.index(count)


def _torchvision_transform() -> Any:
    from torchvision import transforms

    size = PREPROCESSING.image_size
    return transforms.Compose(
        [
            transforms.Resize((size, size)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(PREPROCESSING.mean, PREPROCESSING.std),
        ]
    )
