"""Engines give the same pixels: those of a full decode and an antialiased resize."""

from __future__ import annotations

import io
import resource
import shutil
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bintally.dataset.manifest import read_dataset
from bintally.dataset.samples import Samples
from bintally.errors import UsageError, WorkError
from bintally.loading.batches import load
from bintally.loading.cpu_engine import CpuEngine
from bintally.loading.dali_engine import DaliEngine
from bintally.loading.engine import Engine
from bintally.loading.engines import make_engine
from bintally.loading.preprocessing import Preprocessing
from bintally.options import EngineName
from bintally.storage.opening import open_place

PREPROCESSING = Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CPU = torch.device("cpu")


@pytest.fixture(params=["dali", "cpu"])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "dali":
        pytest.importorskip("nvidia.dali")
    name: EngineName = request.param
    return make_engine(name, PREPROCESSING, CPU, batch_size=16)


def reference(data: bytes, flip: bool) -> torch.Tensor:
    """(3, 224, 224) uint8, by Pillow."""
    photo = (
        Image.open(io.BytesIO(data)).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    )
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    return pixels.flip(2) if flip else pixels


def pixels(batch: torch.Tensor) -> torch.Tensor:
    """The normalisation undone: 0 to 255."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (PREPROCESSING.mean, PREPROCESSING.std))
    return (batch * std + mean) * 255


def agree(engine: Engine, photos: Sequence[bytes]) -> None:
    flips = np.arange(len(photos)) % 2 == 1
    encoded = [np.frombuffer(data, np.uint8) for data in photos]
    (batch,) = engine.run([(encoded, flips)])
    assert batch.shape == (len(photos), 3, 224, 224)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    for got, data, flip in zip(pixels(batch.cpu()), photos, flips, strict=True):
        difference = (got - reference(data, bool(flip)).float()).abs()
        assert difference.mean() < 1


def test_rendered_photos_are_what_pillow_makes_of_them(engine: Engine, bucket: Path) -> None:
    agree(engine, [(bucket / f"bin-images/{i:05d}.jpg").read_bytes() for i in range(1, 11)])


def test_real_photos_are_what_pillow_makes_of_them(engine: Engine, abid: Path) -> None:
    paths = sorted((abid / "bucket/bin-images").iterdir())[:16]
    agree(engine, [path.read_bytes() for path in paths])


def test_half_precision_is_the_same_in_half_the_memory(bucket: Path) -> None:
    pytest.importorskip("nvidia.dali")
    photos = [np.fromfile(bucket / f"bin-images/{i:05d}.jpg", np.uint8) for i in range(1, 5)]
    flips = np.array([True, False, True, False])
    # On a CPU nobody asks for it, but DALI's operators are the same.
    whole, half = (
        next(DaliEngine(PREPROCESSING, CPU, 4, 1, half=half).run([(photos, flips)]))
        for half in (False, True)
    )
    assert half.dtype == torch.float16
    assert torch.equal(whole.half(), half)


def open_samples(folder: Path, split: str = "train") -> Samples:
    place = open_place(folder)
    return Samples(place, read_dataset(place), split)


def test_batches_come_in_the_order_that_was_asked_for(engine: Engine, shards: Path) -> None:
    samples = open_samples(shards)
    order = [np.arange(5, 12), np.array([3]), np.arange(16), np.array([0, 0])]
    for _ in range(2):  # An engine's second run must not begin with what the first left.
        batches = list(load(samples, range(6), engine, order))
        assert [b.indices.tolist() for b in batches] == [o.tolist() for o in order]
        for batch in batches:
            assert batch.labels.tolist() == [samples.count(i) for i in batch.indices]
        assert torch.equal(batches[0].images[0], batches[2].images[5])
        assert torch.equal(batches[2].images[3], batches[1].images[0])


def test_a_run_that_is_given_up_leaves_nothing_to_the_next(engine: Engine, shards: Path) -> None:
    samples = open_samples(shards)
    order = [np.arange(i, i + 4) for i in range(0, 40, 4)]
    abandoned = load(samples, range(6), engine, order)
    next(abandoned)
    del abandoned
    again = list(load(samples, range(6), engine, order))
    assert [b.indices.tolist() for b in again] == [o.tolist() for o in order]
    one_by_one = list(load(samples, range(6), engine, [np.array([i]) for i in range(40)]))
    images = torch.cat([b.images for b in again])
    assert torch.equal(images, torch.cat([b.images for b in one_by_one]))
    assert not any(torch.equal(a, b) for a, b in pairwise(images))


def test_a_run_may_begin_and_end_while_another_is_open(engine: Engine, shards: Path) -> None:
    """As a validation does in the middle of an epoch."""
    samples, others = open_samples(shards), open_samples(shards, "validation")
    order = [np.arange(i, i + 4) for i in range(0, 40, 4)]
    expected = [b.images.clone() for b in load(samples, range(6), engine, order)]
    (among,) = [b.images.clone() for b in load(others, range(6), engine, [np.arange(9)])]
    seen = []
    for number, batch in enumerate(load(samples, range(6), engine, order)):
        seen.append(batch.images.clone())
        if number in (0, 4):
            (validated,) = load(others, range(6), engine, [np.arange(9)])
            assert torch.equal(validated.images, among)
    assert len(seen) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_what_is_kept_of_a_batch_stays_as_it_is(engine: Engine, shards: Path) -> None:
    """One photo, sliced out of the batch: its memory must not be given to the next ones."""
    samples = open_samples(shards)
    order = [np.arange(i, i + 4) for i in range(0, 40, 4)]
    kept, wanted = [], []
    for batch in load(samples, range(6), engine, order):
        kept.append(batch.images[1])
        wanted.append(batch.images[1].clone())
    assert all(torch.equal(a, b) for a, b in zip(kept, wanted, strict=True))


def test_the_memory_of_batches_that_are_gone_is_used_again(bucket: Path) -> None:
    """New memory would come page by page, each fetched from the system when it is first written."""
    photo = np.fromfile(bucket / "bin-images/00001.jpg", np.uint8)
    engine = CpuEngine(PREPROCESSING, CPU, threads=1)

    def page_faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in engine.run(([photo] * 4, np.zeros(4, bool)) for _ in range(30)):
            pass
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    page_faults()
    pages = 30 * 4 * 3 * 224 * 224 * 4 // resource.getpagesize()
    assert page_faults() < pages / 10


def damaged_samples(shards: Path, copy: Path, index: int, damage: bytes) -> Samples:
    """A dataset of which one photo's last bytes are others."""
    shutil.copytree(shards, copy)
    victim = open_samples(shards).photo(index).tobytes()
    tar = copy / "train/train-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(victim, victim[: -len(damage)] + damage))
    return open_samples(copy)


def test_damage_that_a_decoder_does_not_notice_ends_the_epoch_that_reads_it(
    shards: Path, tmp_path: Path
) -> None:
    """A GPU's decoders make pixels of it, and so do DALI's on a CPU."""
    pytest.importorskip("nvidia.dali")
    engine = DaliEngine(PREPROCESSING, CPU, 4, 1)
    damaged = damaged_samples(shards, tmp_path / "dataset", 21, b"\x55" * 40 + b"\xff\xd9")
    order = [np.arange(i, i + 4) for i in range(0, 40, 4)]
    with pytest.raises(WorkError, match=r"train-000000\.tar: is not what was written"):
        list(load(damaged, range(6), engine, order))
    assert len([*load(open_samples(shards), range(6), engine, order)]) == len(order)
    # Who wants to go on without photos that are bad is told.
    assert len([*load(damaged, range(6), engine, order, replaced={})]) == len(order)


def test_a_photo_that_does_not_decode_is_named(
    engine: Engine, shards: Path, tmp_path: Path
) -> None:
    samples = open_samples(shards)
    size = len(samples.photo(21))
    damaged = damaged_samples(shards, tmp_path / "dataset", 21, bytes(size - 700))
    order = [np.arange(i, i + 4) for i in range(0, 40, 4)]
    with pytest.raises(WorkError, match=f"{samples.where(21)}: the photo does not decode"):
        list(load(damaged, range(6), engine, order))


def test_without_dali_the_cpu_engine_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    assert isinstance(make_engine("auto", PREPROCESSING, CPU, batch_size=1), CpuEngine)
    with pytest.raises(UsageError, match="DALI is not installed"):
        make_engine("dali", PREPROCESSING, CPU, batch_size=1)
