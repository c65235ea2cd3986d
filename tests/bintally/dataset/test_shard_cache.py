"""A cache of shards: shared, limited, and whole whatever becomes of its files."""

from __future__ import annotations

import fcntl
import hashlib
import multiprocessing
import resource
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bintally.dataset.manifest import read_dataset
from bintally.dataset.samples import Samples
from bintally.dataset.shard_cache import ShardCache
from bintally.errors import WorkError
from bintally.loading.loader import EpochLoader
from bintally.loading.order import TrainingOrder, schedule_of
from bintally.storage.opening import open_place
from bintally.storage.place import TEMPORARY_SUFFIX
from tests.bintally.dataset.test_shard_files import used
from tests.bintally.loading.test_batches import CLASSES, NoPixels
from tests.counting_place import CountingPlace


def test_a_cached_shard_that_was_damaged_is_fetched_anew(
    shards_on_s3: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = CountingPlace(shards_on_s3)
    dataset = read_dataset(place)

    def labels() -> list[int]:
        """As a new process reads them."""
        place.asked.clear()
        samples = Samples(place, dataset, "train", ShardCache(tmp_path, None))
        return samples.labels(range(len(samples)), CLASSES)

    whole = labels()
    first, second, third, *_ = (s.sha256 for s in dataset.splits["train"].shards)
    damaged = [tmp_path / f"{name}.tar" for name in (first, second, third)]
    damaged[0].write_bytes(bytes(damaged[0].stat().st_size))  # As a crash leaves it.
    damaged[1].write_bytes(damaged[1].read_bytes()[:5000])
    data = bytearray(damaged[2].read_bytes())
    data[2000] ^= 1
    damaged[2].write_bytes(data)
    assert labels() == whole
    assert sorted(place.asked) == sorted(s.path for s in dataset.splits["train"].shards[:3])
    told = caplog.text
    for path in damaged:
        assert f"{path}: damaged since it was fetched" in told
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
    assert labels() == whole
    assert not place.asked


def test_a_cache_that_is_removed_while_it_is_used_is_filled_again(
    shards_on_s3: str, tmp_path: Path
) -> None:
    place = open_place(shards_on_s3)
    samples = Samples(place, read_dataset(place), "train", ShardCache(tmp_path / "c", None))
    order = TrainingOrder(samples.sizes, 4, 0)
    loader = EpochLoader(samples, CLASSES, NoPixels(), order)
    first = [batch.indices.tolist() for batch in loader]
    loader.load_state_dict({"epoch": 0, "step": 0})
    again = []
    for batch in loader:
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        again.append(batch.indices.tolist())
    assert again == first


def test_runs_that_share_a_small_cache_stay_below_its_limit_together(
    shards_on_s3: str, tmp_path: Path
) -> None:
    """What one reads is not taken from under it by the other, nor kept on the disk unseen."""
    place = open_place(shards_on_s3)
    dataset = read_dataset(place)
    limit = 6 * max(shard.bytes for shard in dataset.splits["train"].shards)

    def read(seed: int) -> tuple[int, int]:
        """The photos that were read, and the most that was on the disk."""
        samples = Samples(place, dataset, "train", ShardCache(tmp_path, limit))
        order = TrainingOrder(samples.sizes, 4, seed, 1, 2)
        most, seen = 0, 0
        for batch in EpochLoader(samples, CLASSES, NoPixels(), order):
            most, seen = max(most, used(tmp_path)), seen + len(batch.indices)
        return seen, most

    # Each at its own pace: where one waits for room, the other goes on, and lets go of some.
    with ThreadPoolExecutor(3) as runs:
        for seen, most in runs.map(read, range(3)):
            assert seen == dataset.splits["train"].samples // 4 * 4
            assert 0 < most <= limit


def test_runs_that_wait_for_room_hold_none(shards_on_s3: str, tmp_path: Path) -> None:
    """Each has one shard of its window open, and together they have all that there is room for."""
    place = open_place(shards_on_s3)
    dataset = read_dataset(place)
    shards = dataset.splits["train"].shards
    window, runs = 2, 6
    limit = 3 * window * max(shard.bytes for shard in shards)
    assert len(shards) >= window * runs
    # Somebody else's, which stays.
    other = tmp_path / "other.tar"
    other.write_bytes(bytes(limit - sum(shard.bytes for shard in shards[: 2 * runs : 2])))
    all_have_one = threading.Barrier(runs, timeout=60)

    def read(run: int) -> int:
        samples = Samples(place, dataset, "train", ShardCache(tmp_path, limit))
        ends = samples.sizes.cumsum()
        first, second = ends[2 * run] - 1, ends[2 * run + 1] - 1
        samples.follow(schedule_of(samples.sizes, [np.array([first, second])]))
        photos = [samples.photo(first)]
        all_have_one.wait()
        photos.append(samples.photo(second))
        return len(photos)

    with other.open("rb") as file, ThreadPoolExecutor(runs) as pool:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert list(pool.map(read, range(runs))) == [2] * runs


def _fill(url: str, cache: str, answers: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    place = open_place(url)
    samples = Samples(place, read_dataset(place), "train", ShardCache(Path(cache), None))
    try:
        samples.photo(0)
    except WorkError as error:
        answers.put(str(error))


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error(shards_on_s3: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_fill, args=(shards_on_s3, str(tmp_path / "c"), answers))
    process.start()
    message = answers.get(timeout=60)
    process.join()
    assert f"--cache {tmp_path / 'c'}: no room for train/" in message
    assert not list((tmp_path / "c").glob(f"*{TEMPORARY_SUFFIX}"))


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / f"{'0' * 64}.tar{TEMPORARY_SUFFIX}"
    left.write_bytes(bytes(10))
    time.sleep(0.01)
    ShardCache(tmp_path, 100)
    assert not left.exists()


def test_room_is_made_while_others_put_their_shards_in_place(shards: Path, tmp_path: Path) -> None:
    place = open_place(shards)
    shard = read_dataset(place).splits["train"].shards[0]
    cache = ShardCache(tmp_path, 100 * shard.bytes)
    over = threading.Event()

    def another() -> None:
        aside, path = tmp_path / f"other.tar{TEMPORARY_SUFFIX}", tmp_path / "other.tar"
        while not over.is_set():
            aside.touch()
            aside.rename(path)
            path.unlink()

    thread = threading.Thread(target=another)
    thread.start()
    try:
        for _ in range(500):
            cache.open(place, shard, frozenset).close()
            (tmp_path / f"{shard.sha256}.tar").unlink()
    finally:
        over.set()
        thread.join()
