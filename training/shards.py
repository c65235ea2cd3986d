"""Where the bytes of shards come from: a folder's own files, or a cache that S3 fills."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from bintally.command import UsageError, WorkError
from bintally.places import TEMPORARY_SUFFIX, Folder, Place
from sharding.dataset import Shard

__all__ = ["CachedShards", "FolderShards", "ShardCache", "Shards", "shard_cache"]

OPEN_AT_ONCE = 256
"""Memory maps kept: each has a file descriptor, of which a process often has 1,024."""
DOWNLOADS = 4
"""Shards on their way at a time."""
WINDOW = 16
"""Shards whose samples are shuffled among each other where the cache has no limit."""
WINDOWS_HELD = 3
"""The one being read, the next one, and what the batches on their way still need of the last."""


class Shards(Protocol):
    """The tars of one split, by number."""

    @property
    def window(self) -> int | None:
        """How many shards are read at a time; None where all are at hand."""

    def open(self, number: int) -> mmap.mmap:
        """A whole tar, mapped read-only. `WorkError` where it cannot be had."""

    def follow(self, order: Sequence[int]) -> None:
        """Says in which order shards are about to be needed for the first time; none ends it."""


class _Maps:
    """The memory maps that were used last. A view of one keeps it alive after it has gone."""

    def __init__(self) -> None:
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()

    def get(self, number: int) -> mmap.mmap | None:
        found = self._maps.get(number)
        if found is not None:
            self._maps.move_to_end(number)
        return found

    def put(self, number: int, path: Path) -> mmap.mmap:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._maps[number] = data
        if len(self._maps) > OPEN_AT_ONCE:
            self._maps.popitem(last=False)
        return data


class FolderShards:
    """Shards that lie in a folder."""

    window = None

    def __init__(self, place: Folder, shards: Sequence[Shard]) -> None:
        """Raises `WorkError` where one is missing or is not as long as the dataset says."""
        self._paths = [place.root / shard.path for shard in shards]
        self._maps = _Maps()
        for shard, path in zip(shards, self._paths, strict=True):
            try:
                size = path.stat().st_size
            except OSError as error:
                raise _unreadable(place, shard, error.strerror or str(error)) from error
            if size != shard.bytes:
                raise _unreadable(place, shard, f"{size:,} bytes, not {shard.bytes:,}")

    def open(self, number: int) -> mmap.mmap:
        return self._maps.get(number) or self._maps.put(number, self._paths[number])

    def follow(self, order: Sequence[int]) -> None:
        """Nothing has to be brought."""


class ShardCache:
    """A folder of whole shards, named by their sha256: for any dataset and number of processes.

    Processes that share it agree by file locks, so what several need is fetched once. Its files
    never take more than its limit, for room is made, and taken, before a shard is fetched; what
    was used longest ago goes first.
    """

    def __init__(self, folder: Path, limit_bytes: int | None) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--cache {folder}: cannot be made: {error.strerror}") from error
        with self._locked("room"):
            self._remove_abandoned()

    def fetch(self, place: Place, shard: Shard, keep: frozenset[str]) -> Path:
        """The file of a shard, which is fetched if it is not there; those in `keep` stay.

        Raises `WorkError` where the shard is lost or damaged, or the disk is full.
        """
        path = self.folder / f"{shard.sha256}.tar"
        with self._locked(shard.sha256):
            if path.exists():
                os.utime(path)
                return path
            aside = path.with_name(path.name + TEMPORARY_SUFFIX)
            try:
                self._make_room(aside, shard, keep)
                data = _download(place, shard)
                with aside.open("r+b") as file:
                    file.write(data)
                aside.replace(path)
            except OSError as error:
                raise WorkError(
                    f"--cache {self.folder}: no room for {shard.path} ({shard.bytes:,} bytes): "
                    f"{error.strerror}; name a folder on a larger disk, or set --cache-gib"
                ) from error
            finally:
                aside.unlink(missing_ok=True)
        return path

    def _make_room(self, aside: Path, shard: Shard, keep: frozenset[str]) -> None:
        """Takes as much of the disk as the shard needs, making others go where it is too much."""
        with self._locked("room"):
            if self.limit_bytes is not None:
                files = self._files()
                used = sum(stat.st_size for stat in files.values())
                oldest_first = sorted(files, key=lambda path: files[path].st_mtime_ns)
                for path in oldest_first:
                    if used + shard.bytes <= self.limit_bytes:
                        break
                    if path.suffix == ".tar" and path.stem not in keep:
                        path.unlink(missing_ok=True)
                        used -= files[path].st_size
                if used + shard.bytes > self.limit_bytes:
                    raise WorkError(
                        f"--cache {self.folder}: {self.limit_bytes / 2**30:.2f} GiB do not hold "
                        "what is read at a time; set a larger --cache-gib, or give runs that read "
                        "other datasets caches of their own"
                    )
            with aside.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shard.bytes)

    def _files(self) -> dict[Path, os.stat_result]:
        """Shards, and what is on its way to be one."""
        while True:
            # One may be put in its place, under its other name, after the folder was listed.
            with contextlib.suppress(FileNotFoundError):
                return {path: path.stat() for path in self.folder.glob("*.tar*")}

    def _remove_abandoned(self) -> None:
        """Removes what a process left that was killed: whose lock nobody holds."""
        for path in self.folder.glob(f"*{TEMPORARY_SUFFIX}"):
            with contextlib.suppress(BlockingIOError):
                name = path.name.partition(".")[0]
                with self._locked(name, wait=False):
                    path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, name: str, wait: bool = True) -> Iterator[None]:
        with (self.folder / f"{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield


def shard_cache(folder: Path | None, limit_gib: float) -> ShardCache | None:
    """The cache that `--cache` and `--cache-gib` ask for, if they do."""
    if folder is None:
        return None
    return ShardCache(folder, round(limit_gib * 2**30) or None)


def _download(place: Place, shard: Shard) -> bytes:
    """A shard's bytes, as the dataset says they are."""
    for _ in range(2):  # A transfer may have gone wrong.
        try:
            data = place.get(shard.path)
        except FileNotFoundError as error:
            raise _unreadable(place, shard, "is not there") from error
        if hashlib.sha256(data).hexdigest() == shard.sha256:
            return data
    raise _unreadable(place, shard, "is not what was written (its sha256 differs)")


def _unreadable(place: Place, shard: Shard, reason: str) -> WorkError:
    return WorkError(
        f"{place}/{shard.path}: {reason}; `python -m sharding verify {place}` lists all damage"
    )


class CachedShards:
    """Shards on S3, brought to a cache in the order in which they are needed, ahead of their use.

    Shards are read in windows of some: while one window is read, the next is brought.
    """

    def __init__(self, place: Place, shards: Sequence[Shard], cache: ShardCache) -> None:
        self._place, self._shards, self._cache = place, shards, cache
        self._maps = _Maps()
        self._pool = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="shards")
        self._lock = threading.Lock()
        self._coming: dict[int, Future[Path]] = {}
        self._windows: list[list[int]] = []
        self._entered = -1
        self._window_of: dict[int, int] = {}
        self._keep: frozenset[str] = frozenset()
        largest = max((shard.bytes for shard in shards), default=1)
        self.window = WINDOW
        if cache.limit_bytes is not None:
            self.window = min(WINDOW, cache.limit_bytes // (WINDOWS_HELD * largest))
            if not self.window:
                raise UsageError(
                    f"--cache-gib {cache.limit_bytes / 2**30:g}: less than {WINDOWS_HELD} shards "
                    f"of {place} ({WINDOWS_HELD * largest / 2**30:.2f} GiB)"
                )

    def follow(self, order: Sequence[int]) -> None:
        with self._lock:
            for future in self._coming.values():
                future.cancel()
            self._coming = {n: f for n, f in self._coming.items() if not f.cancelled()}
            size = self.window
            self._windows = [list(order[i : i + size]) for i in range(0, len(order), size)]
            self._window_of = {n: w for w, window in enumerate(self._windows) for n in window}
            self._entered = -1
        if self._windows:
            self._enter(0)

    def open(self, number: int) -> mmap.mmap:
        if (data := self._maps.get(number)) is not None:
            return data
        self._enter(self._window_of.get(number, self._entered))
        with self._lock:
            future = self._coming.get(number) or self._begin(number)
        try:
            return self._maps.put(number, future.result())
        except FileNotFoundError:
            # Made room for another since it came. Once it is mapped, that does no harm.
            with self._lock:
                future = self._begin(number)
            return self._maps.put(number, future.result())

    def _enter(self, window: int) -> None:
        """Brings what is missing of a window and of the next."""
        if window == self._entered:
            return
        with self._lock:
            self._entered = window
            near = [n for w in self._windows[window : window + 2] for n in w]
            self._keep = frozenset(self._shards[n].sha256 for n in near)
            for number in near:
                future = self._coming.get(number)
                gone = future is not None and future.done() and not _is_there(future)
                if future is None or gone:
                    self._begin(number)

    def _begin(self, number: int) -> Future[Path]:
        fetch = self._cache.fetch
        shard = self._shards[number]
        # What is to be kept is asked for when the shard's turn has come.
        future = self._pool.submit(lambda: fetch(self._place, shard, self._keep))
        self._coming[number] = future
        return future


def _is_there(future: Future[Path]) -> bool:
    return future.exception() is None and future.result().exists()
