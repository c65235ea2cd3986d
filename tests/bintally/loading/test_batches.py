"""The loader: where it stands is two integers, on any number of ranks; a bad photo is met."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bintally.dataset.manifest import read_dataset
from bintally.dataset.samples import Samples
from bintally.errors import WorkError
from bintally.loading.augmentation import Augmentation, Draws
from bintally.loading.engines import make_engine
from bintally.loading.loader import EpochLoader
from bintally.loading.order import TrainingOrder
from bintally.loading.preprocessing import Preprocessing
from bintally.storage.opening import open_place

if TYPE_CHECKING:
    from bintally.loading.engine import Photos

CLASSES = range(6)


class NoPixels:
    """An engine for tests of the order alone: it looks at no photo."""

    notices_damage = True

    def run(self, batches: Iterable[tuple[Photos, Draws]]) -> Iterator[torch.Tensor]:
        for photos, _ in batches:
            yield torch.zeros(len(photos), 3, 1, 1)


def open_samples(folder: Path, split: str = "train", where: str | None = None) -> Samples:
    place = open_place(folder)
    return Samples(place, read_dataset(place), split, where=where)


def epochs(loader: EpochLoader, number: int) -> list[list[int]]:
    """The batches of some epochs, as indices."""
    return [batch.indices.tolist() for _ in range(number) for batch in loader]


def global_batches(ranks: list[EpochLoader], number: int) -> list[list[int]]:
    """The same, the parts of all ranks put together, in no order."""
    parts = [epochs(loader, number) for loader in ranks]
    return [sorted(i for part in batch for i in part) for batch in zip(*parts, strict=True)]


@pytest.mark.parametrize("cases", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_from_any_step_on_any_machines_the_ids_are_those_of_an_uninterrupted_run(
    small_shards: Path, cases: int
) -> None:
    parts = [
        open_samples(small_shards, where=where)
        for where in (None, "count <= 3", "count in (0, 5)", "width > height")
    ]
    labels_of = [samples.all_labels(CLASSES) for samples in parts]
    draw = random.Random(0)
    for _ in range(cases):
        part = draw.randrange(len(parts))
        samples, all_labels = parts[part], labels_of[part]
        batch_size, seed = draw.randint(6, len(samples)), draw.randint(0, 3)
        labels = all_labels if draw.random() < 0.5 else None
        lanes, window = 2 ** draw.randint(0, 3), draw.randint(1, 3)

        def loaders(
            machines: int,
            ranks: int,
            samples: Samples = samples,
            batch_size: int = batch_size,
            seed: int = seed,
            lanes: int = lanes,
            window: int = window,
            labels: NDArray[np.int64] | None = labels,
        ) -> list[EpochLoader]:
            return [
                EpochLoader(
                    samples,
                    CLASSES,
                    NoPixels(),
                    TrainingOrder(
                        samples.sizes,
                        batch_size,
                        seed,
                        lanes,
                        window,
                        labels,
                        rank,
                        machines * ranks,
                        machines,
                    ),
                )
                for rank in range(machines * ranks)
            ]

        (alone,) = loaders(1, 1)
        uninterrupted = global_batches([alone], 2)
        assert len(uninterrupted) == 2 * alone.order.steps
        # Stopped after any step by one world, and continued by another.
        stop = draw.randint(0, 2 * alone.order.steps)
        before = loaders(draw.randint(1, 3), draw.randint(1, 2))
        seen = []
        for loader in before:
            taken: list[list[int]] = []
            while len(taken) < stop:
                for batch in loader:
                    taken.append(batch.indices.tolist())
                    if len(taken) == stop:
                        break
            seen.append(taken)
        states = [loader.state_dict() for loader in before]
        assert all(state == states[0] for state in states)
        assert all(type(value) is int for value in states[0].values())
        after = loaders(draw.randint(1, 3), draw.randint(1, 2))
        for loader in after:
            loader.load_state_dict(states[0])
        epochs_left = 2 - states[0]["epoch"]
        begun = [sorted(i for p in b for i in p) for b in zip(*seen, strict=True)]
        assert begun + global_batches(after, epochs_left) == uninterrupted


def test_a_balanced_loader_gives_every_class_equally_often(shards: Path) -> None:
    samples = open_samples(shards)
    order = TrainingOrder(samples.sizes, 1, 0, labels=samples.all_labels(CLASSES))
    loader = EpochLoader(samples, CLASSES, NoPixels(), order)
    counts = np.bincount([int(batch.labels) for batch in loader], minlength=6)
    assert counts.max() - counts.min() <= 1


def last_of_first_shard(samples: Samples) -> int:
    return int(samples.sizes[0]) - 1


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> tuple[Path, list[int]]:
    """A dataset with three photos of the train split that do not decode any more."""
    folder = tmp_path / "dataset"
    shutil.copytree(shards, folder)
    samples = open_samples(shards)
    bad = [3, 4, last_of_first_shard(samples)]
    for index in bad:
        victim = samples.photo(index)
        tar = folder / samples.where(index).partition(":")[0]
        data = tar.read_bytes()
        at = data.index(victim.tobytes())
        tar.write_bytes(data[: at + 700] + bytes(len(victim) - 700) + data[at + len(victim) :])
    return folder, bad


@pytest.mark.parametrize("engine_name", ["cpu", "dali"])
def test_a_bad_photo_is_replaced_by_the_next_of_its_shard_and_counted(
    damaged: tuple[Path, list[int]], engine_name: str
) -> None:
    if engine_name == "dali":
        pytest.importorskip("nvidia.dali")
    folder, _ = damaged
    samples = open_samples(folder)
    stand_ins = {3: 5, 4: 5, last_of_first_shard(samples): 0}
    engine = make_engine(
        "dali" if engine_name == "dali" else "cpu",
        Preprocessing(32, (0, 0, 0), (1, 1, 1)),
        torch.device("cpu"),
        8,
    )
    seen: list[list[int]] = []
    for rank in range(2):
        loader = EpochLoader(
            samples,
            CLASSES,
            engine,
            TrainingOrder(samples.sizes, 8, 0, rank=rank, world_size=2),
            on_bad_sample="skip",
        )
        batches = list(loader)
        seen.append([i for b in batches for i in b.indices.tolist()])
        assert all(b.labels.tolist() == [samples.count(i) for i in b.indices] for b in batches)
        assert loader.replaced.items() <= stand_ins.items()
        pixels = {i: p for b in batches for i, p in zip(b.indices.tolist(), b.images, strict=True)}
        assert all(p.float().std() > 0 for p in pixels.values())
    plain = EpochLoader(samples, CLASSES, NoPixels(), TrainingOrder(samples.sizes, 8, 0))
    expected = [stand_ins.get(i, i) for batch in plain for i in batch.indices.tolist()]
    assert sorted(seen[0] + seen[1]) == sorted(expected)


def test_a_stand_in_is_augmented_alike_at_its_first_meeting_and_later(
    damaged: tuple[Path, list[int]],
) -> None:
    samples = open_samples(damaged[0])
    engine = make_engine("cpu", Preprocessing(32, (0, 0, 0), (1, 1, 1)), torch.device("cpu"), 8)
    for seed in range(4):
        order = TrainingOrder(samples.sizes, 4, seed)

        def open_loader(order: TrainingOrder = order) -> EpochLoader:
            light = Augmentation.named("light")
            return EpochLoader(samples, CLASSES, engine, order, "skip", augment=light)

        loader = open_loader()
        first = [(b.indices, b.images.clone()) for b in loader]
        loader.load_state_dict({"epoch": 0, "step": 0})
        assert loader.replaced, "they are known now"
        later = [(b.indices, b.images.clone()) for b in loader]
        # A resumed run meets them for the first time, in the middle.
        resumed = open_loader()
        resumed.load_state_dict({"epoch": 0, "step": 5})
        rest = [(b.indices, b.images.clone()) for b in resumed]
        for (i, a), (j, b) in zip(first + rest, later + later[5:], strict=True):
            assert i.tolist() == j.tolist()
            assert torch.equal(a, b)


def test_a_bad_photo_ends_training_where_that_is_asked_for(
    damaged: tuple[Path, list[int]],
) -> None:
    folder, bad = damaged
    samples = open_samples(folder)
    engine = make_engine("cpu", Preprocessing(32, (0, 0, 0), (1, 1, 1)), torch.device("cpu"), 8)
    named = "|".join(samples.where(index) for index in bad)
    with pytest.raises(WorkError, match=f"({named}): the photo does not decode"):
        list(EpochLoader(samples, CLASSES, engine, TrainingOrder(samples.sizes, 8, 0)))


def test_the_catalog_knows_every_label(shards: Path) -> None:
    for split in ("train", "validation", "test"):
        samples = open_samples(shards, split)
        every = range(len(samples))
        assert samples.all_labels(CLASSES).tolist() == samples.labels(every, CLASSES)
        with pytest.raises(WorkError, match="is none of the classes"):
            samples.all_labels([c for c in CLASSES if c != samples.count(0)])
