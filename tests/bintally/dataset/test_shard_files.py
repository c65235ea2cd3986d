"""Shards on S3 are read through a cache: small, shared, checked, and no sample is lost."""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bintally.dataset.manifest import read_dataset
from bintally.dataset.samples import Samples
from bintally.dataset.shard_cache import ShardCache
from bintally.errors import UsageError, WorkError
from bintally.loading.batches import load
from bintally.loading.engines import make_engine
from bintally.loading.loader import EpochLoader
from bintally.loading.order import TrainingOrder, evaluation_batches
from bintally.loading.preprocessing import Preprocessing
from bintally.storage.opening import open_place
from tests.bintally.loading.test_batches import CLASSES, NoPixels
from tests.counting_place import CountingPlace

PREPROCESSING = Preprocessing(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def used(folder: Path) -> int:
    """Bytes of disk, those included of files that are removed and still mapped by this process."""
    removed = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        if f" {folder}/" in line and line.endswith("(deleted)"):
            span, _, _, _, inode, *_ = line.split()
            begin, end = (int(bound, 16) for bound in span.split("-"))
            removed.add((inode, end - begin))
    total = sum(size for _, size in removed)
    for path in folder.glob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def test_two_epochs_from_s3_through_a_cache_of_a_quarter_of_the_dataset(
    shards_on_s3: str, small_shards: Path, tmp_path: Path
) -> None:
    place = CountingPlace(shards_on_s3)
    dataset = read_dataset(place)
    limit = sum(shard.bytes for shard in dataset.shards) // 4
    cache = ShardCache(tmp_path / "cache", limit)
    samples = Samples(place, dataset, "train", cache)
    engine = make_engine("cpu", PREPROCESSING, torch.device("cpu"), 4)
    loader = EpochLoader(
        samples, CLASSES, engine, TrainingOrder(samples.sizes, 4, 0, lanes=1, window=2)
    )
    most, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.003):
            most = max(most, used(tmp_path / "cache"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    folder = open_place(small_shards)
    local = Samples(folder, dataset, "train")
    try:
        for _ in range(2):
            seen: Counter[int] = Counter()
            place.asked.clear()
            for batch in loader:
                seen.update(batch.indices.tolist())
                assert batch.labels.tolist() == [local.count(i) for i in batch.indices]
            assert set(seen.values()) == {1}
            assert len(seen) == len(samples) // 4 * 4
            # A shard is read in one window, and brought once for it.
            assert max(Counter(place.asked).values()) == 1
        # A validation between two epochs goes through the same cache.
        validation = Samples(place, dataset, "validation", cache)
        order = evaluation_batches(len(validation), 4, 0, 1)
        answers = [i for b in load(validation, CLASSES, engine, order) for i in b.indices.tolist()]
        assert answers == list(range(len(validation)))
    finally:
        ended.set()
        watcher.join()
    assert 0 < most <= limit


def test_training_goes_on_from_s3_where_it_was_interrupted(
    shards_on_s3: str, tmp_path: Path
) -> None:
    place = open_place(shards_on_s3)
    dataset = read_dataset(place)
    largest = max(shard.bytes for shard in dataset.splits["train"].shards)

    def loader(folder: str) -> EpochLoader:
        samples = Samples(place, dataset, "train", ShardCache(tmp_path / folder, 6 * largest))
        order = TrainingOrder(samples.sizes, 7, 3, lanes=1, window=3)
        return EpochLoader(samples, CLASSES, NoPixels(), order)

    whole = loader("a")
    uninterrupted = [batch.indices.tolist() for batch in whole]
    assert whole.state_dict() == {"epoch": 1, "step": 0}
    for step in (1, 5, whole.order.steps - 1):
        rest = loader("b")
        rest.load_state_dict({"epoch": 0, "step": step})
        assert [batch.indices.tolist() for batch in rest] == uninterrupted[step:]


def _read(url: str, cache: str, rank: int, asked: Any) -> None:
    place = CountingPlace(url)
    dataset = read_dataset(place)
    samples = Samples(place, dataset, "train", ShardCache(Path(cache), None))
    order = TrainingOrder(samples.sizes, 8, 0, rank=rank, world_size=2)
    loader = EpochLoader(samples, CLASSES, NoPixels(), order)
    seen = [i for batch in loader for i in batch.indices.tolist()]
    asked.put((place.asked, seen))


@pytest.mark.slow
def test_processes_that_share_a_cache_fetch_each_shard_once(
    shards_on_s3: str, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [
        context.Process(target=_read, args=(shards_on_s3, str(tmp_path / "cache"), rank, answers))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    (asked, seen), (asked_too, seen_too) = answers.get(timeout=120), answers.get(timeout=120)
    for process in processes:
        process.join()
    train = read_dataset(open_place(shards_on_s3)).splits["train"]
    assert sorted(asked + asked_too) == sorted(shard.path for shard in train.shards)
    assert len({*seen, *seen_too}) == len(seen) + len(seen_too) == train.samples // 8 * 8
    for shard in train.shards:
        data = (tmp_path / f"cache/{shard.sha256}.tar").read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard.sha256


def test_a_cache_that_is_too_small_is_refused_at_the_start(
    shards_on_s3: str, tmp_path: Path
) -> None:
    place = open_place(shards_on_s3)
    dataset = read_dataset(place)
    with pytest.raises(UsageError, match=r"--cache-gib: has no room for two shards.*at least 0\."):
        Samples(place, dataset, "train", ShardCache(tmp_path, 1_000))
    largest = max(shard.bytes for shard in dataset.splits["train"].shards)
    samples = Samples(place, dataset, "train", ShardCache(tmp_path, 5 * largest))
    TrainingOrder(samples.sizes, 8, 0, lanes=2, window=2).check_room(samples)
    TrainingOrder(samples.sizes, 8, 0, 4, 2, world_size=2, num_machines=2).check_room(samples)
    told = r"room for 5 shards, and 4 lanes .* of 2 shards want 9 .*, or --lanes 4 --window 1$"
    with pytest.raises(UsageError, match=told):
        TrainingOrder(samples.sizes, 8, 0, lanes=4, window=2).check_room(samples)
    with pytest.raises(UsageError, match=r"or --lanes 4 --window 1$"):
        TrainingOrder(samples.sizes, 8, 0, lanes=8, window=1).check_room(samples)


def test_without_a_cache_shards_on_s3_are_refused(shards_on_s3: str) -> None:
    place = open_place(shards_on_s3)
    with pytest.raises(UsageError, match="are read through a local --cache"):
        Samples(place, read_dataset(place), "train")


def test_a_lost_or_damaged_shard_is_one_clear_error(shards_on_s3: str, tmp_path: Path) -> None:
    place = open_place(shards_on_s3)
    dataset = read_dataset(place)
    first = dataset.splits["train"].shards[0]
    data = place.get(first.path)

    def read() -> None:
        samples = Samples(place, dataset, "train", ShardCache(tmp_path / "cache", None))
        list(load(samples, CLASSES, NoPixels(), [np.arange(4)]))

    place.put(first.path, data[:-1] + b"?")
    with pytest.raises(WorkError, match=rf"{first.path}: is not what was written"):
        read()
    place.delete(first.path)
    with pytest.raises(WorkError, match=rf"{first.path}: is not there.*verify"):
        read()
    # Nothing that is half there is taken for whole when it is back.
    place.put(first.path, data)
    read()


def test_a_missing_or_short_shard_of_a_folder_is_named(small_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    shutil.copytree(small_shards, folder)
    place = open_place(folder)
    dataset = read_dataset(place)
    second = dataset.splits["train"].shards[1]
    (folder / second.path).write_bytes((folder / second.path).read_bytes()[:-1])
    with pytest.raises(WorkError, match=rf"{second.path}: .* bytes, not .*verify"):
        Samples(place, dataset, "train")
    (folder / second.path).unlink()
    with pytest.raises(WorkError, match=rf"{second.path}: No such file"):
        Samples(place, dataset, "train")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [(b"v1.2 6", b"v1.2 5", "not the index of 6"), (b"jpg 512 ", b"jpg five ", "invalid literal")],
)
def test_a_damaged_index_is_named(
    small_shards: Path, tmp_path: Path, old: bytes, new: bytes, reason: str
) -> None:
    folder = tmp_path / "dataset"
    shutil.copytree(small_shards, folder)
    place = open_place(folder)
    dataset = read_dataset(place)
    index = dataset.splits["train"].shards[2].index
    (folder / index).write_bytes((folder / index).read_bytes().replace(old, new))
    samples = Samples(place, dataset, "train")
    with pytest.raises(WorkError, match=rf"{index}: the index cannot be read: .*{reason}"):
        len(samples.ids)
