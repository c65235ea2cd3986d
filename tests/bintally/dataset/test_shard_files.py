"""Shards on S3 are read through a cache: small, shared, checked, and no sample is lost."""

from __future__ import annotations

import fcntl
import hashlib
import multiprocessing
import resource
import shutil
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
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
from bintally.storage.place import TEMPORARY_SUFFIX
from bintally.storage.s3.prefix import S3Prefix
from tests.bintally.loading.test_batches import CLASSES, NoPixels
from tests.conftest import copy

PREPROCESSING = Preprocessing(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class CountingPlace(S3Prefix):
    """S3 that remembers which tars were asked for."""

    def __init__(self, url: str) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        super().__init__(url, bucket, prefix, anonymous=False)
        self.asked: list[str] = []

    def get(self, path: str) -> bytes:
        if path.endswith(".tar"):
            self.asked.append(path)
        return super().get(path)


@pytest.fixture(scope="module")
def small_shards(bucket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of many shards."""
    from sharding.build import build
    from sharding.distribute import Processes
    from sharding.planning.plan import Options

    folder = tmp_path_factory.mktemp("small") / "dataset"
    build(
        open_place(bucket),
        open_place(folder),
        Options(shard_samples=6),
        distributor=Processes(1),
        connections=8,
    )
    return folder


@pytest.fixture
def shards_on_s3(small_shards: Path, s3: str) -> str:
    copy(open_place(small_shards), open_place(f"{s3}/shards"))
    return f"{s3}/shards"


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
    limit = sum(shard.bytes for split in dataset.splits.values() for shard in split.shards) // 4
    cache = ShardCache(tmp_path / "cache", limit)
    samples = Samples(place, dataset, "train", cache)
    engine = make_engine("cpu", PREPROCESSING, torch.device("cpu"), 4)
    loader = EpochLoader(
        samples, CLASSES, engine, TrainingOrder(len(samples), 4, 0, windows=samples.windows)
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
        order = TrainingOrder(len(samples), 7, 3, windows=samples.windows)
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
    order = TrainingOrder(len(samples), 8, 0, windows=samples.windows, rank=rank, world_size=2)
    loader = EpochLoader(samples, CLASSES, NoPixels(), order)
    seen = [i for batch in loader for i in batch.indices.tolist()]
    asked.put((place.asked, seen))


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
    with pytest.raises(UsageError, match=r"--cache-gib .*less than 3 shards"):
        Samples(place, read_dataset(place), "train", ShardCache(tmp_path, 100_000))


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


def test_a_cached_shard_that_was_damaged_is_fetched_anew(
    shards_on_s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    told = capsys.readouterr().err
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
    order = TrainingOrder(len(samples), 4, 0, windows=samples.windows)
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
        order = TrainingOrder(len(samples), 4, seed, windows=samples.windows)
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
        first, second = np.flatnonzero(np.isin(samples.shards, [2 * run, 2 * run + 1]))[[0, -1]]
        samples.follow(np.array([first, second]))
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
    with pytest.raises(WorkError, match=rf"{index}: the index cannot be read: .*{reason}"):
        Samples(place, dataset, "train")
