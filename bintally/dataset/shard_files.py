"""Where the bytes of shards come from: a folder's own files, or a cache that S3 fills."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bintally.dataset.manifest import Shard
from bintally.dataset.shard_cache import (
    NOT_WHAT_WAS_WRITTEN,
    NoRoom,
    ShardCache,
    file_sha256,
    gib_for,
    unreadable,
)
from bintally.errors import UsageError, WorkError
from bintally.machine import open_files_limit, ranks_here
from bintally.storage.folder import Folder
from bintally.storage.place import Place

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CachedShards", "FolderShards", "ShardFiles", "ShardSchedule"]

OPEN_AT_ONCE = min(2048, open_files_limit() // 4)
"""Memory maps kept: each has a file descriptor, of which a process often has 1,024."""
PATIENCE_AHEAD_S = 5.0
"""How long room is waited for in a cache, for a shard that is not needed yet."""


@dataclass(frozen=True)
class ShardSchedule:
    """Which shards are read from which batch to which, by number: a shard may come twice."""

    shards: NDArray[np.int64]
    """(spans,)"""
    first: NDArray[np.int64]
    """(spans,) batches, ascending."""
    last: NDArray[np.int64]
    """(spans,) batches."""
    mine: NDArray[np.bool_]
    """(spans,) what this process brings or checks; the others of its machine do so for the rest."""


class ShardFiles(Protocol):
    """The tars of one split and their indexes, by number."""

    lasting: bool
    """Whether a view of a tar may be kept, at no price."""
    room: int | None
    """How many shards there is room for at a time; None where there is no limit."""

    def open(self, number: int) -> mmap.mmap:
        """A whole tar, mapped read-only. `WorkError` where it cannot be had."""

    def index(self, number: int) -> bytes:
        """Its index. `FileNotFoundError` where there is none."""

    def follow(self, schedule: ShardSchedule | None, *, check: bool = False) -> None:
        """Says which shards are about to be needed; None ends it.

        With `check`, `settle` says whether they are what was written.
        """

    def advance(self, batch: int) -> None:
        """Says that the samples of a batch of the schedule are about to be asked for."""

    def settle(self) -> None:
        """Returns when all that had to be checked has been. Raises `WorkError`, naming a shard
        that is not what was written."""


class FolderShards:
    """Shards that lie in a folder. The maps that were used last are kept.

    What has to be checked is read on a thread of its own, once in a process, and shared among the
    processes of a machine.
    """

    lasting = True
    room: int | None = None

    def __init__(self, tars: Folder, place: Place, shards: Sequence[Shard]) -> None:
        """`place` is the dataset's, with the indexes.

        Raises `WorkError` where a shard is missing or is not as long as the dataset says.
        """
        self._tars, self._place, self._shards = tars, place, shards
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()
        self._checker = ThreadPoolExecutor(1, "check")
        self._checks: dict[int, Future[None]] = {}
        for shard in shards:
            try:
                size = (tars.root / shard.path).stat().st_size
            except OSError as error:
                raise unreadable(tars, shard, error.strerror or str(error)) from error
            if size != shard.bytes:
                raise unreadable(tars, shard, f"{size:,} bytes, not {shard.bytes:,}")

    def open(self, number: int) -> mmap.mmap:
        data = self._maps.get(number)
        if data is None:
            with self._path(number).open("rb") as file:
                data = self._maps[number] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if len(self._maps) > OPEN_AT_ONCE:
                self._maps.popitem(last=False)
        self._maps.move_to_end(number)
        return data

    def index(self, number: int) -> bytes:
        return self._place.get(self._shards[number].index)

    def follow(self, schedule: ShardSchedule | None, *, check: bool = False) -> None:
        for number, checked in [*self._checks.items()]:
            if checked.cancel():
                del self._checks[number]
        if schedule is None or not check:
            return
        for number in schedule.shards[schedule.mine].tolist():
            if number not in self._checks:
                self._checks[number] = self._checker.submit(self._check, number)

    def advance(self, batch: int) -> None:
        """All shards are at hand."""

    def settle(self) -> None:
        for checked in self._checks.values():
            checked.result()

    def _path(self, number: int) -> Path:
        return self._tars.root / self._shards[number].path

    def _check(self, number: int) -> None:
        shard = self._shards[number]
        try:
            with self._path(number).open("rb") as file:
                whole = file_sha256(file) == shard.sha256
        except OSError as error:
            raise unreadable(self._tars, shard, error.strerror or str(error)) from error
        if not whole:
            raise unreadable(self._tars, shard, NOT_WHAT_WAS_WRITTEN)


class CachedShards:
    """Shards on S3, brought to a cache in the order in which they are needed, ahead of their use.

    Those that are being read, and those that come next, do not make room for others, unless there
    is none for one that is needed now.
    """

    lasting = False

    def __init__(
        self, tars: Place, place: Place, shards: Sequence[Shard], cache: ShardCache
    ) -> None:
        """`place` is the dataset's, with the indexes."""
        self._tars, self._place, self._shards, self._cache = tars, place, shards, cache
        # The processes of a machine share its link.
        downloads = max(1, cache.downloads // ranks_here())
        self._pool = ThreadPoolExecutor(downloads, thread_name_prefix="shards")
        self._lock = threading.Lock()
        self._maps: dict[int, mmap.mmap] = {}
        self._indexes: dict[int, bytes] = {}
        self._coming: dict[int, Future[None]] = {}
        self._schedule: ShardSchedule | None = None
        self._changes = 0
        """The batch from which on other shards are needed than now."""
        self._near: frozenset[str] = frozenset()
        self._largest = max((shard.bytes for shard in shards), default=1)
        self.room = None if cache.limit_bytes is None else cache.limit_bytes // self._largest
        if self.room is not None and self.room < 2:
            raise UsageError(
                f"--cache-gib: has no room for two shards of {tars}; "
                f"at least {gib_for(2 * self._largest)}"
            )

    def settle(self) -> None:
        """Each was checked when it was opened."""

    def follow(self, schedule: ShardSchedule | None, *, check: bool = False) -> None:
        self._schedule, self._changes = schedule, 0
        if schedule is None:
            self._hold(set(), [])
        else:
            self.advance(0)

    def advance(self, batch: int) -> None:
        schedule = self._schedule
        if schedule is None or batch < self._changes:
            return
        begun = int(schedule.first.searchsorted(batch, side="right"))
        read = (schedule.last[:begun] >= batch).nonzero()[0].tolist()
        # As many more as are being read now: the next window of each lane.
        following = range(
            begun, min(begun + len(read) + self._cache.downloads, len(schedule.first))
        )
        self._changes = min(
            [
                *(schedule.last[read] + 1).tolist(),
                *schedule.first[begun : begun + 1].tolist(),
            ],
            default=batch + 1,
        )
        near = self._that_fit([*read, *following])
        shards, mine = schedule.shards[near], schedule.mine[near]
        self._hold({*shards.tolist()}, shards[mine].tolist())

    def open(self, number: int) -> mmap.mmap:
        if (data := self._maps.get(number)) is not None:
            return data
        coming = self._coming.get(number)
        if coming is not None and not coming.cancel():
            wait([coming])
        # If it did not come, for want of room or for another reason, that is met here.
        shard = self._shards[number]
        try:
            file = self._cache.open(self._tars, shard, self._kept, patience_s=0)
        except NoRoom:
            # Of runs that share a cache, each might wait for what another one holds, and for what
            # it has brought itself ahead of its need.
            with self._lock:
                self._maps.clear()
            file = self._cache.open(self._tars, shard, frozenset)
        with file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with self._lock:
            self._maps[number] = data
            if len(self._maps) > OPEN_AT_ONCE:
                del self._maps[next(iter(self._maps))]
        return data

    def index(self, number: int) -> bytes:
        found = self._indexes.get(number)
        return self._place.get(self._shards[number].index) if found is None else found

    def _that_fit(self, spans: list[int]) -> list[int]:
        """The first of some spans for whose shards the cache has room, beside one of any others."""
        assert self._schedule is not None
        if self._cache.limit_bytes is None:
            return spans
        room, fit = self._cache.limit_bytes - self._largest, set[int]()
        for at, span in enumerate(spans):
            number = int(self._schedule.shards[span])
            if number not in fit:
                fit.add(number)
                room -= self._shards[number].bytes
            if room < 0:
                return spans[:at]
        return spans

    def _hold(self, near: Collection[int], mine: Sequence[int]) -> None:
        """Lets go of all but some shards, and brings what is missing of `mine`, one by one."""
        with self._lock:
            self._near = frozenset(self._shards[n].sha256 for n in near)
            self._maps = {n: m for n, m in self._maps.items() if n in near}
            self._indexes = {n: i for n, i in self._indexes.items() if n in near}
            for number, future in self._coming.items():
                if number not in near:
                    future.cancel()
            self._coming = {
                n: self._coming.get(n) or self._pool.submit(self._bring, n) for n in mine
            }

    def _kept(self) -> frozenset[str]:
        """What may not make room: by the time that room is made, these may be others."""
        return self._near

    def _bring(self, number: int) -> None:
        shard = self._shards[number]
        with contextlib.suppress(WorkError, OSError):
            self._indexes[number] = self._place.get(shard.index)
            self._cache.open(self._tars, shard, self._kept, PATIENCE_AHEAD_S).close()
