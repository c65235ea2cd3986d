"""What the loader's benchmark may be relied on for: the same pixels, every photo, and what scale
is measured on."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.loader.epoch import ACCELERATOR_PER_S, BUSY, measure
from benchmarks.loader.pixels import normalised, pixels
from benchmarks.loader.scale import write_links
from benchmarks.loader.workload import BATCH_SIZE, PREPROCESSING, Batches, Workload
from bintally.errors import WorkError
from bintally.loading.loader import Loader

SIZE = PREPROCESSING.image_size


def workload(class_counts: tuple[int, ...]) -> Workload:
    nowhere = Path("/nowhere")
    classes = tuple(range(len(class_counts)))
    return Workload(nowhere, (), (), nowhere, classes, class_counts, "cpu", 2, nowhere)


def jpeg(width: int, height: int) -> bytes:
    # Smooth, so that a decode at half the size is no other photo.
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    photo = np.stack([across, down, 255 - across], axis=2).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "jpeg", quality=95)
    return file.getvalue()


@pytest.mark.parametrize("least", [1, 2])
@pytest.mark.parametrize("size", [(500, 470), (1000, 1900), (150, 300)])
def test_peers_make_pillows_pixels(size: tuple[int, int], least: int) -> None:
    data = jpeg(*size)
    found = pixels(data, least).numpy().astype(int)
    photo = Image.open(io.BytesIO(data)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    wanted = np.asarray(photo).astype(int)
    assert min(np.abs(found - w).mean() for w in (wanted, wanted[:, ::-1])) < 1


def test_a_batch_is_normalised_channel_by_channel() -> None:
    images = torch.randint(0, 256, (3, SIZE, SIZE, 3), dtype=torch.uint8)
    ((found, classes),) = normalised(iter([(images, torch.arange(3))]), workload((1, 1, 1)))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PREPROCESSING.mean, PREPROCESSING.std))
    wanted = (images.permute(0, 3, 1, 2) / 255 - mean) / std
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert classes.tolist() == [0, 1, 2]


def batches(number: int, seconds: float = 0.0) -> Batches:
    """Each of a class of its own, and after some time."""
    for label in range(number):
        time.sleep(seconds)
        yield torch.zeros(BATCH_SIZE, 3, SIZE, SIZE), torch.full((BATCH_SIZE,), label)


def test_accelerators_are_fed_at_the_rate_that_was_held() -> None:
    # This one works only while somebody waits: nothing is there when a step ends, and beside
    # accelerators it is not half as fast as alone, whatever else the machine does.
    measured = measure(workload((BATCH_SIZE,) * 8), lambda: batches(8, 0.02))
    alone = measured["photos_per_s"] / (BUSY * ACCELERATOR_PER_S)
    assert 0 < measured["h100s_at_90"] < alone
    assert measured["photos_per_s_per_core"] == measured["photos_per_s"] / 2


def test_a_loader_that_misses_photos_or_mistakes_classes_fails() -> None:
    with pytest.raises(WorkError, match="delivered 448 photos, not 512"):
        measure(workload((BATCH_SIZE,) * 8), lambda: batches(7))
    with pytest.raises(WorkError, match="of the classes"):
        measure(workload((BATCH_SIZE - 1, BATCH_SIZE + 1, BATCH_SIZE)), lambda: batches(3))


def test_links_to_a_shard_are_a_dataset_of_many(tmp_path: Path) -> None:
    write_links(tmp_path, 1_002)
    loader = Loader(tmp_path, batch_size=64, image_size=32, device="cpu", engine="cpu")
    assert len(loader) == 1_002_000 // 64
    batch = next(iter(loader))
    assert batch.images.shape == (64, 3, 32, 32)
