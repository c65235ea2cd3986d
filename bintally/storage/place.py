"""A place is a folder or `s3://bucket/prefix`; both read and write whole objects by relative path.

Objects appear complete or not at all: a folder's files are written aside and renamed, S3 does so
by itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bintally.terminal.command import UsageError, WorkError

__all__ = [
    "LOCK",
    "Entry",
    "Folder",
    "ObjectChanged",
    "ObjectRefused",
    "Place",
    "delete_temporary_files",
    "open_place",
    "write_atomically",
]

TEMPORARY_SUFFIX = ".bintally-tmp"
"""Nobody else's files are called so, and these may be removed."""
LOCK = ".bintally-lock"
"""What a lease writes into a place that is being written to: no part of what it holds."""


@dataclass(frozen=True)
class Entry:
    """An object in a place."""

    path: str
    size_bytes: int
    version: str
    """Changes when the object does: its ETag on S3, its time of modification in a folder."""


class ObjectChanged(Exception):
    """An object is no longer as it was listed."""


class ObjectRefused(WorkError):
    """One object is kept from us, and others are not: it is archived, or may not be read."""


class Place(ABC):
    """A folder or an S3 prefix. Picklable, and safe to use from several threads."""

    url: str

    @abstractmethod
    def check(self) -> None:
        """Raises `UsageError` unless the place is there and may be read."""

    @abstractmethod
    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """The objects whose path is below the folder `prefix`, in no particular order, but for
        `LOCK` and what is being written."""

    @abstractmethod
    def get(self, path: str) -> bytes:
        """An object's bytes; `FileNotFoundError` if there is none."""

    def fetch(self, entry: Entry) -> bytes:
        """The bytes of a listed object.

        `ObjectChanged` if it is not what was listed any more, `FileNotFoundError` if it is gone,
        `ObjectRefused` if it alone cannot be had.
        """
        data = self.get(entry.path)
        if len(data) != entry.size_bytes:
            raise ObjectChanged(entry.path)
        return data

    @abstractmethod
    def put(self, path: str, *pieces: bytes) -> None:
        """Writes an object, or replaces it, whole: what the pieces hold one after the other."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Removes an object if it is there."""

    def __str__(self) -> str:
        return self.url


def open_place(url: str | os.PathLike[str], *, anonymous: bool = False) -> Place:
    """The place named `url`; `anonymous` sends unsigned requests to S3."""
    text = os.fspath(url)
    if text.startswith("s3://"):
        bucket, _, prefix = text.removeprefix("s3://").partition("/")
        if not bucket:
            raise UsageError(f"{text}: no bucket is named; write s3://BUCKET or s3://BUCKET/PREFIX")
        from bintally.storage.s3.prefix import S3Prefix

        return S3Prefix(text.rstrip("/"), bucket, prefix.strip("/"), anonymous)
    if "://" in text:
        raise UsageError(f"{text}: not a place; name a folder or s3://BUCKET/PREFIX")
    return Folder(Path(text))


def write_atomically(path: Path, *pieces: bytes) -> None:
    """Writes a file that appears complete or not at all, making its folder where it is missing."""
    # Two processes may write the same file; neither may rename what the other is still writing.
    aside = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            # Without it, a power cut after the rename can leave a complete name on an empty file.
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise WorkError(f"{path}: cannot be written: {error.strerror}") from error


def delete_temporary_files(folder: Path) -> None:
    """Removes what interrupted writers left aside in a folder, while nobody writes there."""
    for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)


class Folder(Place):
    """A folder of the local file system."""

    def __init__(self, root: Path) -> None:
        # Absolute, for a worker on another machine starts in a folder of its own.
        self.root = root.absolute()
        self.url = str(root)

    def check(self) -> None:
        if not self.root.exists():
            raise UsageError(f"{self.url}: no such folder")
        if not self.root.is_dir():
            raise UsageError(f"{self.url}: not a folder")
        if not os.access(self.root, os.R_OK | os.X_OK):
            raise UsageError(f"{self.url}: no permission to read this folder")

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """As every place's. What is listed here and cannot be read (a link to nothing, a folder
        without permission or a link to one that it lies in) is an object that `get` refuses."""
        pending = [(self.root / prefix, frozenset[tuple[int, int]]())]
        while pending:
            folder, above = pending.pop()
            try:
                with os.scandir(folder) as found:
                    children = [*found]
                status = folder.stat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except PermissionError as error:
                if folder == self.root / prefix:
                    raise UsageError(f"{folder}: no permission to read this folder") from error
                yield self._unreadable(folder)
                continue
            except OSError as error:
                raise WorkError(f"{folder}: cannot be listed: {error.strerror}") from error
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                yield self._unreadable(folder)
                continue
            for entry in children:
                try:
                    if entry.is_dir():
                        pending.append((Path(entry.path), above | {identity}))
                    elif not entry.name.endswith(TEMPORARY_SUFFIX) and entry.name != LOCK:
                        path = Path(entry.path).relative_to(self.root).as_posix()
                        status = entry.stat()
                        yield Entry(path, status.st_size, f"{status.st_mtime_ns:x}")
                except FileNotFoundError:
                    if entry.is_symlink():  # To nothing. Else it is gone since it was listed.
                        yield self._unreadable(Path(entry.path))
                except OSError:  # A link to itself, say.
                    yield self._unreadable(Path(entry.path))

    def _unreadable(self, path: Path) -> Entry:
        return Entry(path.relative_to(self.root).as_posix(), 0, "")

    def get(self, path: str) -> bytes:
        file = self.root / path
        try:
            with open(file, "rb", opener=_open_without_waiting) as opened:
                if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                    raise ObjectRefused(f"{file}: is a pipe or a device, not a file")
                return opened.read()
        except FileNotFoundError:
            if file.is_symlink():
                raise ObjectRefused(f"{file}: is a link that leads nowhere") from None
            raise
        except OSError as error:
            kind = ObjectRefused if error.errno in ITS_OWN_FAULT else WorkError
            raise kind(f"{file}: cannot be read: {error.strerror}") from error

    def fetch(self, entry: Entry) -> bytes:
        try:
            return super().fetch(entry)
        except ObjectRefused as error:
            # A catalog says what became of an object, and not where the folder lay.
            raise ObjectRefused(str(error).removeprefix(f"{self.root}/")) from error

    def put(self, path: str, *pieces: bytes) -> None:
        write_atomically(self.root / path, *pieces)

    def delete(self, path: str) -> None:
        try:
            (self.root / path).unlink(missing_ok=True)
        except OSError as error:
            raise WorkError(f"{self.root / path}: cannot be removed: {error.strerror}") from error


def _open_without_waiting(path: str, flags: int) -> int:
    # A pipe that nobody writes to would keep us for ever.
    return os.open(path, flags | os.O_NONBLOCK)


ITS_OWN_FAULT = (
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENODEV,
    errno.ENOTDIR,
    errno.ENXIO,
)
"""What keeps one file from us. Other errors are the disk's or the network's, and meet all files."""
