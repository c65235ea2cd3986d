"""Where the bytes of shards come from: a folder's own files, or a cache that S3 fills."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol

from bintally.dataset.manifest import Shard
from bintally.dataset.shard_cache import (
    NOT_WHAT_WAS_WRITTEN,
    NoRoom,
    ShardCache,
    file_sha256,
    unreadable,
)
from bintally.errors import UsageError, WorkError
from bintally.machine import open_files_limit
from bintally.storage.folder import Folder
from bintally.storage.place import Place

__all__ = ["CachedShards", "FolderShards", "ShardFiles"]

OPEN_AT_ONCE = min(256, open_files_limit() // 4)
"""Memory maps kept: each has a file descriptor, of which a process often has 1,024."""
DOWNLOADS = 4
"""Shards on their way at a time."""
WINDOW = 16
"""Shards whose samples are shuffled among each other where the cache has no limit."""
WINDOWS_HELD = 3
"""The one being read, the next one, and as much for another run."""
NO_WINDOW = -1
PATIENCE_AHEAD_S = 5.0
"""The same, for a shard that is not needed yet."""


class ShardFiles(Protocol):
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
                raise unreadable(place, shard, error.strerror or str(error)) from error
            if size != shard.bytes:
                raise unreadable(place, shard, f"{size:,} bytes, not {shard.bytes:,}")

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
                whole = file_sha256(file) == shard.sha256
        except OSError as error:
            raise unreadable(self._place, shard, error.strerror or str(error)) from error
        if not whole:
            raise unreadable(self._place, shard, NOT_WHAT_WAS_WRITTEN)


class CachedShards:
    """Shards on S3, brought to a cache in the order in which they are needed, ahead of their use.

    Shards are read in windows of some: while one window is read, the next is brought. Only those of
    a window are held open, and while room is waited for not even they: of runs that share a cache,
    each would wait for what another one holds.
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
        shard = self._shards[number]
        try:
            file = self._cache.open(self._place, shard, self._kept, patience_s=0)
        except NoRoom:
            with self._lock:
                self._maps.clear()
            file = self._cache.open(self._place, shard, self._kept)
        with file:
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
