"""A folder as a place. Its files are written aside and renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from bintally.errors import UsageError, WorkError
from bintally.storage.place import LOCK, TEMPORARY_SUFFIX, Entry, ObjectRefused, Place

__all__ = ["Folder", "delete_temporary_files", "write_atomically"]


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
