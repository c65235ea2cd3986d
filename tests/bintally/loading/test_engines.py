"""Engines give the same pixels: those of a full decode and an antialiased resize."""

from __future__ import annotations

import io
import resource
import shutil
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from bintally.dataset.manifest import read_dataset
from bintally.dataset.samples import Samples
from bintally.errors import UsageError, WorkError
from bintally.loading.augmentation import Augmentation, Draws
from bintally.loading.batches import load
from bintally.loading.cpu_engine import CpuEngine
from bintally.loading.dali_engine import DaliEngine
from bintally.loading.engine import Engine
from bintally.loading.engines import make_engine
from bintally.loading.preprocessing import Preprocessing
from bintally.loading.resize import augment_into
from bintally.options import AugmentName, EngineName
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
    (batch,) = engine.run([(encoded, Draws(flips))])
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


def jpeg(width: int, height: int, mode: str = "RGB") -> bytes:
    """A smooth photo of a size."""
    y, x = np.mgrid[:height, :width]
    waves = [128 + 120 * np.sin(9 * x / width + c) * np.cos(8 * y / height) for c in range(3)]
    file = io.BytesIO()
    Image.fromarray(np.stack(waves, axis=2).astype(np.uint8)).convert(mode).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def photos(bucket: Path) -> list[bytes]:
    """Rendered ones, and some of odd sizes: tiny, as large as the output, so large that a smaller
    one is decoded."""
    rendered = [(bucket / f"bin-images/{i:05d}.jpg").read_bytes() for i in range(1, 9)]
    sizes = [(1, 1), (7, 5), (224, 224), (3, 400), (1801, 1207)]
    return [*rendered, *(jpeg(*size) for size in sizes), jpeg(300, 200, "L")]


def augmented(data: bytes, draws: Draws, at: int) -> torch.Tensor:
    """(3, 224, 224) uint8, by Pillow."""
    photo = Image.open(io.BytesIO(data)).convert("RGB")
    if draws.boxes is not None:
        sides = draws.boxes[at].astype(float) * [*photo.size, *photo.size]
        # Pillow knows no box that is larger than its photo: the edge is repeated beforehand.
        margin = int(max(0, *-sides[:2], *(sides[2:] - photo.size))) + 2 * max(photo.size)
        wide = np.pad(np.array(photo), ((margin, margin), (margin, margin), (0, 0)), "edge")
        photo = Image.fromarray(wide)
        sides += margin
    else:
        sides = np.array([0, 0, *photo.size])
    photo = photo.resize((224, 224), Image.Resampling.BILINEAR, box=tuple(sides.tolist()))
    if draws.colours is not None:
        photo = photo.convert("RGB", draws.colours[at].ravel().tolist())
    if draws.mirrored[at]:
        photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1)


def agree_augmented(engine: Engine, photos: Sequence[bytes], draws: Draws) -> None:
    encoded = [np.frombuffer(data, np.uint8) for data in photos]
    (batch,) = engine.run([(encoded, draws)])
    for at, (got, data) in enumerate(zip(pixels(batch), photos, strict=True)):
        difference = (got - augmented(data, draws, at).float()).abs()
        assert difference.mean() < 1, at


@pytest.mark.parametrize("name", get_args(AugmentName))
def test_augmentations_are_what_pillow_makes_of_them(
    engine: Engine, photos: list[bytes], name: AugmentName
) -> None:
    augmentation = Augmentation.named(name)
    encoded = [np.frombuffer(data, np.uint8) for data in photos]
    ids = [f"{i:05d}" for i in range(len(photos))]
    for epoch in range(3):
        agree_augmented(engine, photos, augmentation.draw(ids, encoded, seed=0, epoch=epoch))


def test_real_photos_are_augmented_as_pillow_does_it(engine: Engine, abid: Path) -> None:
    paths = sorted((abid / "bucket/bin-images").iterdir())[:16]
    data = [path.read_bytes() for path in paths]
    encoded = [np.frombuffer(photo, np.uint8) for photo in data]
    for name in get_args(AugmentName):
        draw = Augmentation.named(name).draw
        agree_augmented(engine, data, draw([p.stem for p in paths], encoded, seed=0, epoch=0))


@pytest.mark.parametrize(
    "box",
    [
        (-0.5, -0.2, 1.3, 2.0),
        (0.4, 0.45, 0.6, 0.5),
        (0.9, 0.8, 1.2, 1.1),
        (0.5, 0.5, 0.5001, 0.5001),
    ],
)
def test_a_box_may_reach_over_the_edge(
    engine: Engine, photos: list[bytes], box: tuple[float, ...]
) -> None:
    number = len(photos)
    flips = np.arange(number) % 2 == 1
    boxes = np.tile(np.array(box, np.float32), (number, 1))
    agree_augmented(engine, photos, Draws(flips, boxes))


def test_colours_are_cut_off_once_at_the_end(engine: Engine, photos: list[bytes]) -> None:
    number = len(photos)
    mix = [[2, -1, 0, 20], [-0.5, 3, 0.5, -200], [0, 0, 0.1, 250]]
    colours = np.tile(np.array(mix, np.float32), (number, 1, 1))
    agree_augmented(engine, photos, Draws(np.zeros(number, bool), None, colours))


def test_bytes_that_go_to_a_gpu_are_the_rounded_pixels(bucket: Path) -> None:
    photo = simplejpeg.decode_jpeg((bucket / "bin-images/00001.jpg").read_bytes())
    rows = photo.reshape(len(photo), -1)
    box = np.array([-0.1, 0.1, 0.9, 1.2], np.float32)
    mix = np.array([[1.5, 0, 0, -40], [0, 2, 0, -99], [0.5, 0, 3, 9]], np.float32)
    made = {}
    for kind, shift in ((np.float32, 0), (np.uint8, 0.5)):
        made[kind] = np.empty((64, 64 * 3), kind)
        one, half = np.ones(4, np.float32), np.full(4, shift, np.float32)
        augment_into(rows, box, True, mix, one, half, made[kind])
    assert (made[np.uint8] == np.floor(made[np.float32] + 0.5)).mean() > 0.999
    assert {0, 255} <= {*made[np.uint8].ravel().tolist()}, "cut off at both ends"


@pytest.mark.slow
def test_runs_may_be_augmented_and_not_in_turn(engine: Engine, photos: list[bytes]) -> None:
    """As training and validation are."""
    encoded = [np.frombuffer(data, np.uint8) for data in photos]
    light = Augmentation.named("light").draw(["x"] * len(photos), encoded, 0, 0)
    for draws in (light, Draws.nothing(len(photos)), light):
        agree_augmented(engine, photos, draws)


def test_half_precision_is_the_same_in_half_the_memory(bucket: Path) -> None:
    pytest.importorskip("nvidia.dali")
    photos = [np.fromfile(bucket / f"bin-images/{i:05d}.jpg", np.uint8) for i in range(1, 5)]
    flips = Draws(np.array([True, False, True, False]))
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
        for _ in engine.run(([photo] * 4, Draws.nothing(4)) for _ in range(30)):
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
