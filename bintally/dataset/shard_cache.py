"""A cache of whole shards on disk, which the processes of a machine share."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from io import BufferedRandom, BufferedReader
from math import ceil
from pathlib import Path

from bintally.dataset.manifest import Shard
from bintally.errors import UsageError, WorkError
from bintally.options import DOWNLOADS
from bintally.storage.place import TEMPORARY_SUFFIX, Place

__all__ = [
    "NOT_WHAT_WAS_WRITTEN",
    "NoRoom",
    "ShardCache",
    "file_sha256",
    "gib_for",
    "shard_cache",
    "unreadable",
]

logger = logging.getLogger(__name__)

NOT_WHAT_WAS_WRITTEN = "is not what was written (its sha256 differs)"
PATIENCE_S = 60.0
"""How long room is waited for that other processes, or other splits, have open."""
POLL_S = 0.05

Kept = Callable[[], frozenset[str]]
"""Says which shards, by their sha256, may not make room now."""


class NoRoom(WorkError):
    """Others have all of a cache open."""


class ShardCache:
    """A folder of whole shards, named by their sha256: for any dataset and number of processes.

    Processes that share it agree by file locks, so what several need is fetched once. Its files
    never take more than its limit, for room is made, and taken, before a shard is fetched; of those
    that no process has open, what was used longest ago goes first.
    """

    def __init__(self, folder: Path, limit_bytes: int | None, downloads: int = DOWNLOADS) -> None:
        """`downloads`: shards on their way at a time, for all processes of the machine."""
        self.folder, self.limit_bytes, self.downloads = folder, limit_bytes, downloads
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
        `patience_s`. Raises `NoRoom` where there is none then, `WorkError` where the shard itself
        is lost or damaged, or the disk is full.
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
        if there.st_size != shard.bytes or not (known or file_sha256(file) == shard.sha256):
            logger.warning(f"{path}: damaged since it was fetched; {shard.path} is fetched anew")
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
                raise NoRoom(
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


def file_sha256(file: BufferedRandom | BufferedReader) -> str | None:
    """Of a file's bytes; None where the disk does not give them back."""
    try:
        return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def shard_cache(
    folder: Path | None, limit_gib: float, downloads: int = DOWNLOADS
) -> ShardCache | None:
    """The cache that `--cache` and `--cache-gib` ask for, if they do."""
    if folder is None:
        return None
    return ShardCache(folder, round(limit_gib * 2**30) or None, downloads)


def gib_for(size_bytes: int) -> str:
    """How much --cache-gib has to be to hold so much."""
    return f"{ceil(size_bytes / 2**30 * 1000) / 1000:g}"


def _download(place: Place, shard: Shard) -> bytes:
    """A shard's bytes, as the dataset says they are."""
    for _ in range(2):  # A transfer may have gone wrong.
        try:
            data = place.get(shard.path)
        except FileNotFoundError as error:
            raise unreadable(place, shard, "is not there") from error
        if hashlib.sha256(data).hexdigest() == shard.sha256:
            return data
    raise unreadable(place, shard, NOT_WHAT_WAS_WRITTEN)


def unreadable(place: Place, shard: Shard, reason: str) -> WorkError:
    return WorkError(f"{place}/{shard.path}: {reason}; `bintally verify` lists all damage")
