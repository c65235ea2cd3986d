"""Where the bytes of shards come from: a folder's own files, or a cache that S3 fills."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from io import BufferedRandom
from pathlib import Path
from typing import Protocol

from bintally.command import UsageError, WorkError
from bintally.places import TEMPORARY_SUFFIX, Folder, Place
from bintally.progress import say
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
NO_WINDOW = -1
NOT_WHAT_WAS_WRITTEN = "is not what was written (its sha256 differs)"
PATIENCE_S = 60.0
"""How long room is waited for that other processes, or other splits, have open."""
PATIENCE_AHEAD_S = 5.0
"""The same, for a shard that is not needed yet."""
POLL_S = 0.05


Kept = Callable[[], frozenset[str]]
"""Says which shards, by their sha256, may not make room now."""


class Shards(Protocol):
    """The tars of one split, by number."""

    @property
    def window(self) -> int | None:
        """How many shards are read at a time; None where all are at hand."""

    def open(self, number: int) -> mmap.mmap:
        """A whole tar, mapped read-only. `WorkError` where it cannot be had."""

    def follow(self, order: Sequence[int], *, check: bool = False) -> None:
        """Says in which order shards are about to be needed for the first time; none ends it.

        With `check`, `settle` says whether they are what was written.
        """

    def settle(self) -> None:
        """Returns when all that had to be checked has been. Raises `WorkError`, naming a shard
        that is not what was written."""


class FolderShards:
    """Shards that lie in a folder. The maps that were used last are kept.

    What has to be checked is read on a thread of its own, once in a process, and shared among the
    processes of a machine.
    """

    window = None

    def __init__(self, place: Folder, shards: Sequence[Shard]) -> None:
        """Raises `WorkError` where one is missing or is not as long as the dataset says."""
        self._place, self._shards = place, shards
        self._paths = [place.root / shard.path for shard in shards]
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()
        self._checker = ThreadPoolExecutor(1, "check")
        self._checks: dict[int, Future[None]] = {}
        for shard, path in zip(shards, self._paths, strict=True):
            try:
                size = path.stat().st_size
            except OSError as error:
                raise _unreadable(place, shard, error.strerror or str(error)) from error
            if size != shard.bytes:
                raise _unreadable(place, shard, f"{size:,} bytes, not {shard.bytes:,}")

    def open(self, number: int) -> mmap.mmap:
        data = self._maps.get(number)
        if data is None:
            with self._paths[number].open("rb") as file:
                data = self._maps[number] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if len(self._maps) > OPEN_AT_ONCE:
                self._maps.popitem(last=False)
        self._maps.move_to_end(number)
        return data

    def follow(self, order: Sequence[int], *, check: bool = False) -> None:
        for number, checked in [*self._checks.items()]:
            if checked.cancel():
                del self._checks[number]
        process, processes = (
            int(os.environ.get(name, default))
            for name, default in (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
        )
        for number in order if check else ():
            if number % processes == process and number not in self._checks:
                self._checks[number] = self._checker.submit(self._check, number)

    def settle(self) -> None:
        for checked in self._checks.values():
            checked.result()

    def _check(self, number: int) -> None:
        shard = self._shards[number]
        try:
            with self._paths[number].open("rb") as file:
                whole = _sha256(file) == shard.sha256
        except OSError as error:
            raise _unreadable(self._place, shard, error.strerror or str(error)) from error
        if not whole:
            raise _unreadable(self._place, shard, NOT_WHAT_WAS_WRITTEN)


class ShardCache:
    """A folder of whole shards, named by their sha256: for any dataset and number of processes.

    Processes that share it agree by file locks, so what several need is fetched once. Its files
    never take more than its limit, for room is made, and taken, before a shard is fetched; of those
    that no process has open, what was used longest ago goes first.
    """

    def __init__(self, folder: Path, limit_bytes: int | None) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._whole: set[str] = set()
        """Shards whose bytes this process has seen to be right."""
        try:
            with self._locked("room"):
                self._remove_abandoned()
        except OSError as error:
            raise UsageError(f"--cache {folder}: cannot be used: {error.strerror}") from error

    def open(
        self, place: Place, shard: Shard, keep: Kept, patience_s: float = PATIENCE_S
    ) -> BufferedRandom:
        """The file of a shard, which is fetched if it is not there; those that `keep` names stay.

        It stays where it is until this is closed, and every map made of it. One that a crash or
        the disk has damaged is fetched anew. Where others have all the room open, it is waited for
        `patience_s`. Raises `WorkError` where there is none then, where the shard itself is lost or
        damaged, or the disk is full.
        """
        try:
            try:
                return self._open(place, shard, keep, patience_s)
            except FileNotFoundError:
                # Somebody has just removed the folder, which is made again.
                return self._open(place, shard, keep, patience_s)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            raise WorkError(
                f"--cache {self.folder}: no room for {shard.path} ({shard.bytes:,} bytes): "
                f"{error.strerror}; name a folder on a larger disk, or set --cache-gib"
                if full
                else f"--cache {self.folder}: {shard.path} cannot be kept there: {error.strerror}"
            ) from error

    def _open(self, place: Place, shard: Shard, keep: Kept, patience_s: float) -> BufferedRandom:
        path = self.folder / f"{shard.sha256}.tar"
        with self._locked(shard.sha256):
            if (file := self._open_whole(path, shard)) is not None:
                return file
            aside = path.with_name(path.name + TEMPORARY_SUFFIX)
            try:
                self._make_room(aside, shard, keep, patience_s)
                data = _download(place, shard)
                with aside.open("r+b") as file:
                    file.write(data)
                file = aside.open("r+b")
                fcntl.flock(file, fcntl.LOCK_SH)
                aside.replace(path)
            finally:
                aside.unlink(missing_ok=True)
            self._whole.add(shard.sha256)
            return file

    def _open_whole(self, path: Path, shard: Shard) -> BufferedRandom | None:
        """A file that is there, and is what it should be: all of its bytes are looked at when this
        process uses it for the first time."""
        try:
            file = path.open("r+b")
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        there = os.fstat(file.fileno())
        if not there.st_nlink:  # It has just made room for another.
            file.close()
            return None
        known = shard.sha256 in self._whole
        if there.st_size != shard.bytes or not (known or _sha256(file) == shard.sha256):
            say(f"{path}: damaged since it was fetched; {shard.path} is fetched anew")
            path.unlink(missing_ok=True)
            file.close()
            return None
        self._whole.add(shard.sha256)
        os.utime(path)
        return file

    def _make_room(self, aside: Path, shard: Shard, keep: Kept, patience_s: float) -> None:
        """Takes as much of the disk as the shard needs, making others go where it is too much."""
        until = time.monotonic() + patience_s
        while not self._take_room(aside, shard, keep):
            if time.monotonic() >= until:
                assert self.limit_bytes is not None
                raise WorkError(
                    f"--cache {self.folder}: {self.limit_bytes / 2**30:.2f} GiB do not hold "
                    "what is read at a time; set a larger --cache-gib, or give runs that read "
                    "other datasets caches of their own"
                )
            time.sleep(POLL_S)

    def _take_room(self, aside: Path, shard: Shard, keep: Kept) -> bool:
        with self._locked("room"):
            if self.limit_bytes is not None:
                files, kept = self._files(), keep()
                excess = sum(stat.st_size for stat in files.values()) + shard.bytes
                excess -= self.limit_bytes
                for path in sorted(files, key=lambda path: files[path].st_mtime_ns):
                    if excess <= 0:
                        break
                    if path.suffix == ".tar" and path.stem not in kept and _remove_unused(path):
                        excess -= files[path].st_size
                if excess > 0:
                    return False
            with aside.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shard.bytes)
        return True

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
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield


def _remove_unused(path: Path) -> bool:
    """Removes a file that no process has open; its disk is free then."""
    try:
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True


def _sha256(file: BufferedRandom) -> str | None:
    """Of a file's bytes; None where the disk does not give them back."""
    try:
        return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


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
    raise _unreadable(place, shard, NOT_WHAT_WAS_WRITTEN)


def _unreadable(place: Place, shard: Shard, reason: str) -> WorkError:
    return WorkError(
        f"{place}/{shard.path}: {reason}; `python -m sharding verify {place}` lists all damage"
    )


class CachedShards:
    """Shards on S3, brought to a cache in the order in which they are needed, ahead of their use.

    Shards are read in windows of some: while one window is read, the next is brought. Only those of
    a window are held open, and of earlier ones what batches on their way still need: the others may
    make room.
    """

    def __init__(self, place: Place, shards: Sequence[Shard], cache: ShardCache) -> None:
        self._place, self._shards, self._cache = place, shards, cache
        self._pool = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="shards")
        self._lock = threading.Lock()
        self._maps: dict[int, mmap.mmap] = {}
        self._coming: dict[int, Future[None]] = {}
        self._windows: list[list[int]] = []
        self._window_of: dict[int, int] = {}
        self._entered = NO_WINDOW
        self._near: frozenset[str] = frozenset()
        largest = max((shard.bytes for shard in shards), default=1)
        self.window = WINDOW
        if cache.limit_bytes is not None:
            self.window = min(WINDOW, cache.limit_bytes // (WINDOWS_HELD * largest))
            if not self.window:
                raise UsageError(
                    f"--cache-gib {cache.limit_bytes / 2**30:g}: less than {WINDOWS_HELD} shards "
                    f"of {place} ({WINDOWS_HELD * largest / 2**30:.2f} GiB)"
                )

    def settle(self) -> None:
        """Each was checked when it was opened."""

    def follow(self, order: Sequence[int], *, check: bool = False) -> None:
        size = self.window
        with self._lock:
            self._windows = [list(order[i : i + size]) for i in range(0, len(order), size)]
            self._window_of = {n: w for w, window in enumerate(self._windows) for n in window}
        self._enter(0)

    def open(self, number: int) -> mmap.mmap:
        if (data := self._maps.get(number)) is not None:
            return data
        window = self._window_of.get(number, NO_WINDOW)
        if window != self._entered or window == NO_WINDOW:
            self._enter(window)
        coming = self._coming.get(number)
        if coming is not None and not coming.cancel():
            wait([coming])
        # If it did not come, for want of room or for another reason, that is met here.
        with self._cache.open(self._place, self._shards[number], self._kept) as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with self._lock:
            self._maps[number] = data
        return data

    def _enter(self, window: int) -> None:
        """Lets go of all but a window and the next, and brings what is missing of them."""
        with self._lock:
            windows = [] if window == NO_WINDOW else self._windows[window : window + 2]
            near = [n for w in windows for n in w]
            self._entered = window
            self._near = frozenset(self._shards[n].sha256 for n in near)
            # A view of a map keeps it alive.
            self._maps = {n: self._maps[n] for n in near if n in self._maps}
            for number, future in self._coming.items():
                if number not in near:
                    future.cancel()
            self._coming = {
                n: self._coming.get(n) or self._pool.submit(self._bring, n) for n in near
            }

    def _kept(self) -> frozenset[str]:
        """What may not make room: by the time that room is made, these may be others."""
        return self._near

    def _bring(self, number: int) -> None:
        with contextlib.suppress(WorkError):
            self._cache.open(
                self._place, self._shards[number], self._kept, PATIENCE_AHEAD_S
            ).close()
