"""Augmentation: a pure function of (seed, epoch, id), with the numbers that were asked for."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torchvision.transforms import RandomResizedCrop

import bintally
from bintally.loading.augmentation import Augmentation, Draws, id_keys, mirrored
from bintally.options import AugmentName

NAMES = get_args(AugmentName)
LIGHT, IMAGENET = Augmentation.named("light"), Augmentation.named("imagenet")
IDS = [f"{i:05d}" for i in range(10_000)]


def blank(width: int, height: int) -> NDArray[np.uint8]:
    data = simplejpeg.encode_jpeg(np.zeros((height, width, 3), np.uint8))
    return np.frombuffer(data, np.uint8)


def draw(augmentation: Augmentation, ids: list[str], seed: int = 0, epoch: int = 0) -> Draws:
    return augmentation.draw(ids, [blank(500, 300)] * len(ids), seed, epoch)


def rows(draws: Draws) -> list[list[float]]:
    """All that was drawn, a list for each photo."""
    columns = [draws.mirrored, draws.boxes, draws.colours]
    number = len(draws.mirrored)
    values = np.hstack([c.reshape(number, -1) for c in columns if c is not None])
    return [[*map(float, row)] for row in values]


@given(
    st.sampled_from(NAMES),
    st.lists(st.text(), min_size=1, max_size=12, unique=True),
    st.integers(0, 2**63),
    st.integers(0, 1000),
    st.data(),
)
def test_what_is_drawn_for_a_sample_depends_on_nothing_beside_it(
    name: AugmentName, ids: list[str], seed: int, epoch: int, data: st.DataObject
) -> None:
    augmentation = Augmentation.named(name)
    drawn = dict(zip(ids, rows(draw(augmentation, ids, seed, epoch)), strict=True))
    others = data.draw(st.lists(st.sampled_from(ids), min_size=1, max_size=12))
    assert rows(draw(augmentation, others, seed, epoch)) == [drawn[i] for i in others]
    part = slice(len(ids) // 3, len(ids))
    assert rows(draw(augmentation, ids, seed, epoch)[part]) == [drawn[i] for i in ids[part]]


def test_epochs_seeds_and_ids_have_draws_of_their_own() -> None:
    drawn = [
        tuple(rows(draw(LIGHT, [i], seed, epoch))[0])
        for i in ("1", "01", "a")
        for seed in range(5)
        for epoch in range(5)
    ]
    assert len({*drawn}) == len(drawn)


def test_the_draws_are_the_same_on_every_machine_and_for_ever() -> None:
    assert id_keys(["00001", "ä"]).tolist() == [4164317446498314724, 4152366542966443504]
    flipped = [True, True, True, False, False, True, True, False]
    assert mirrored(id_keys(IDS[:8]), seed=0, epoch=0).tolist() == flipped
    red = [1.2917, -0.0878, -0.017, -13.1665]
    light = np.round(rows(draw(LIGHT, ["00001"]))[0][:9], 4).tolist()
    assert light == [1.0, -0.0288, -0.0382, 1.0123, 1.0029, *red]
    # In whole pixels.
    boxes = draw(IMAGENET, ["00001", "00002"]).boxes
    assert boxes is not None
    pixels = (boxes * [500, 300, 500, 300]).round(3)
    assert pixels.tolist() == [[239, 43, 457, 219], [229, 62, 410, 239]]


def test_photos_are_mirrored_as_often_as_was_asked_for_and_others_in_another_epoch() -> None:
    keys = id_keys(IDS)
    first, second = (mirrored(keys, 0, epoch) for epoch in (0, 1))
    assert abs(int(first.sum()) - 5000) < 250
    assert abs(int((first != second).sum()) - 5000) < 250
    assert draw(Augmentation.named("flip"), IDS[:100]).mirrored.tolist() == first[:100].tolist()
    assert abs(int(mirrored(keys, 0, 0, 0.2).sum()) - 2000) < 200
    assert not mirrored(keys, 0, 0, 0.0).any()
    assert mirrored(keys, 0, 0, 1.0).all()


def test_light_keeps_all_of_every_photo_in_view() -> None:
    drawn = draw(LIGHT, IDS)
    assert drawn.boxes is not None
    boxes = drawn.boxes.astype(float)
    assert (boxes[:, :2] < 1e-6).all()
    assert (boxes[:, 2:] > 1 - 1e-6).all()
    widths, heights = (boxes[:, 2:] - boxes[:, :2]).T
    np.testing.assert_allclose(widths, heights, atol=1e-6)
    shown = 1 / widths
    assert 0.849 < shown.min() < 0.851
    assert 0.999 < shown.max() < 1.001
    assert abs(shown.mean() - 0.925) < 0.005
    # Anywhere in the room that is left, and across and down on their own.
    left, top = (-boxes[:, :2] / np.maximum(1e-9, widths - 1)[:, None])[shown < 0.99].T
    assert abs(left.mean() - 0.5) < 0.02
    assert abs(left.std() - 12**-0.5) < 0.02
    assert abs(np.corrcoef(left, top)[0, 1]) < 0.05


def test_a_crop_is_one_that_torchvision_might_have_drawn() -> None:
    for width, height in ((500, 300), (31, 200), (3, 1)):
        photos = [blank(width, height)] * len(IDS)
        boxes = IMAGENET.draw(IDS, photos, seed=0, epoch=0).boxes
        assert boxes is not None
        pixels = boxes.astype(float) * [width, height, width, height]
        np.testing.assert_allclose(pixels, pixels.round(), atol=1e-3)
        left, top, right, bottom = pixels.round().T
        assert (left >= 0).all()
        assert (top >= 0).all()
        assert (right <= width).all()
        assert (bottom <= height).all()
        photo = torch.zeros(3, height, width)
        torch.manual_seed(0)
        area, ratio = [0.08, 1.0], [3 / 4, 4 / 3]
        crops = [RandomResizedCrop.get_params(photo, area, ratio) for _ in range(3000)]
        theirs = np.array(crops, float)
        ours = np.stack([top, left, bottom - top, right - left], axis=1)
        # By chance they differ by up to 5 sigma of the smaller sample.
        chance = 5 * (1.3 / len(crops)) ** 0.5 * (theirs.std(axis=0) + 0.01)
        assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < chance).all()
        assert (np.abs(ours.std(axis=0) - theirs.std(axis=0)) < chance).all()


def test_a_crop_may_be_moved_and_shown_smaller_too() -> None:
    moved = draw(replace(IMAGENET, scale=(0.5, 0.5), shift=0.0), IDS[:50])
    plain = draw(IMAGENET, IDS[:50])
    assert moved.boxes is not None
    assert plain.boxes is not None
    extents = plain.boxes[:, 2:] - plain.boxes[:, :2]
    np.testing.assert_allclose(moved.boxes[:, :2], plain.boxes[:, :2] - extents / 2, atol=1e-6)
    np.testing.assert_allclose(moved.boxes[:, 2:], plain.boxes[:, 2:] + extents / 2, atol=1e-6)


def test_a_photo_that_is_none_is_the_engines_to_refuse() -> None:
    boxes = IMAGENET.draw(["1"], [np.zeros(100, np.uint8)], 0, 0).boxes
    assert boxes is not None
    assert boxes.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colours_are_what_pillow_makes_of_such_factors(bucket: Path, name: str) -> None:
    numbers: dict[str, Any] = {name: 0.3}
    drawn = draw(Augmentation(**numbers), IDS[:1000])
    assert drawn.boxes is None
    assert drawn.colours is not None
    photo = Image.open(io.BytesIO((bucket / "bin-images/00001.jpg").read_bytes())).convert("RGB")
    grey = Image.new("RGB", photo.size, (128, 128, 128))
    factors = drawn.colours[:, 0, 0] - drawn.colours[:, 1, 0]
    assert 0.699 < factors.min() < 0.705
    assert 1.295 < factors.max() < 1.301
    for factor, mix in zip(factors[:5].tolist(), drawn.colours, strict=False):
        wanted = {
            "brightness": ImageEnhance.Brightness(photo).enhance(factor),
            "contrast": Image.blend(grey, photo, factor),
            "saturation": ImageEnhance.Color(photo).enhance(factor),
        }[name]
        got = photo.convert("RGB", mix.ravel().tolist())
        assert np.abs(np.array(got, float) - np.array(wanted, float)).max() <= 1


@pytest.mark.parametrize(
    ("message", "numbers"),
    [
        ("flip 1.5: must be from 0 to 1", {"flip": 1.5}),
        ("flip nan: must be from 0 to 1", {"flip": float("nan")}),
        ("flip True: must be from 0 to 1", {"flip": True}),
        ("shift far: must be from 0 to 1", {"shift": "far"}),
        ("brightness -0.1: must be from 0 to 1", {"brightness": -0.1}),
        (
            r"scale \(1.1, 0.9\): must be two numbers from 0.1 to 10, the smaller one first",
            {"scale": (1.1, 0.9)},
        ),
        (
            r"area \(0.0, 1.0\): must be two numbers from 0.001 to 1, the smaller one first",
            {"area": (0.0, 1.0)},
        ),
        (
            "ratio 2: must be two numbers from 0.01 to 100, the smaller one first",
            {"ratio": 2},
        ),
        (
            "ratio None: must be two numbers from 0.01 to 100, the smaller one first",
            {"ratio": None},
        ),
    ],
)
def test_numbers_that_make_no_sense_are_refused(message: str, numbers: Any) -> None:
    with pytest.raises(bintally.UsageError, match=f"^{message}$"):
        Augmentation(**numbers)


def loaded(shards: Path, **more: Any) -> bintally.Loader:
    small: dict[str, Any] = {"batch_size": 8, "image_size": 32, "device": "cpu", "engine": "cpu"}
    return bintally.Loader(shards, **(small | more))


def images(batches: Iterator[bintally.Batch]) -> dict[str, torch.Tensor]:
    return {i: x.clone() for b in batches for i, x in zip(b.ids, b.images, strict=True)}


@pytest.mark.parametrize("augment", [*NAMES, Augmentation(scale=(0.5, 1.5), shift=0.5)])
def test_pixels_are_the_same_after_a_resume_and_on_other_ranks(
    shards: Path, monkeypatch: pytest.MonkeyPatch, augment: AugmentName | Augmentation
) -> None:
    loader = loaded(shards, augment=augment)
    first, second = images(iter(loader)), images(iter(loader))
    shared = first.keys() & second.keys()
    changed = sum(not torch.equal(first[i], second[i]) for i in shared)
    assert (changed == 0) if augment == "none" else (changed > len(shared) / 4)
    loader = loaded(shards, augment=augment)
    images(iter(loader))
    begun = images(islice(loader, 3))
    resumed = loaded(shards, augment=augment)
    resumed.load_state_dict(loader.state_dict())
    rest = images(iter(resumed))
    monkeypatch.setenv("WORLD_SIZE", "2")
    ranks: dict[str, torch.Tensor] = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        of_rank = loaded(shards, augment=augment)
        images(iter(of_rank))
        ranks |= images(iter(of_rank))
    for again in (begun | rest, ranks):
        assert again.keys() == second.keys()
        assert all(torch.equal(again[i], second[i]) for i in again)


def test_an_evaluation_is_not_augmented_unless_it_is_asked_for(shards: Path) -> None:
    plain = images(iter(loaded(shards, split="validation")))
    light = images(iter(loaded(shards, split="validation", augment="light")))
    assert plain.keys() == light.keys()
    assert not any(torch.equal(plain[i], light[i]) for i in plain)
