"""Ours, and what most people begin with: torchvision's ImageFolder."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from benchmarks.loader.epoch import measure, to_device
from benchmarks.loader.workload import BATCH_SIZE, PREPROCESSING, Batches, Workload
from benchmarks.measure import Measurement
from bintally.errors import WorkError
from bintally.options import AugmentName

__all__ = ["image_folder", "ours"]


def ours(
    workload: Workload,
    engine_name: Literal["dali", "cpu"],
    augment: AugmentName = "flip",
) -> Measurement:
    """Our loader, through the same calls as training."""
    import numpy as np
    import torch

    from bintally.dataset.manifest import read_dataset
    from bintally.dataset.samples import Samples
    from bintally.loading.augmentation import Augmentation
    from bintally.loading.batches import load
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
        engine = make_engine(engine_name, PREPROCESSING, device, BATCH_SIZE)
        lanes, window = choose_lanes(len(samples.sizes))
        order = EpochOrder(samples.sizes, 0, 0, lanes, window).at(np.arange(len(samples)))
        batches = [order[i : i + BATCH_SIZE] for i in range(0, len(order), BATCH_SIZE)]
        draw = partial(Augmentation.named(augment).draw, seed=0, epoch=0)
        for batch in load(samples, workload.classes, engine, batches, draw):
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
