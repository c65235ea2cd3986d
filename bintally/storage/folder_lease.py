"""The lease of a folder: a lock that the system takes from a process as soon as it ends."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from bintally.errors import WorkError
from bintally.storage.folder import Folder
from bintally.storage.lease import Lease
from bintally.storage.place import LOCK

__all__ = ["FolderLease"]

logger = logging.getLogger(__name__)

WORKERS_END_WITHIN_S = 3.0
"""How long the workers of a holder that was killed may still be writing, in a folder."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class FolderLease(Lease):
    """A lock file that its holder locks, shared, for as long as it lives.

    Whoever locks it alone (which nobody can while it is shared) writes its own token into it. A
    worker shares the lock while it writes, and only if the token is still its holder's: so nobody
    takes over from a dead holder while a worker of that one still writes.
    """

    def __init__(self, place: Folder) -> None:
        super().__init__(place)
        self.path = place.root / LOCK
        self._file = self._take()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def check(self) -> None:
        with self._shared():
            pass

    def put(self, path: str, *pieces: bytes) -> None:
        with self._shared():
            self.place.put(path, *pieces)

    def delete(self, path: str) -> None:
        with self._shared():
            self.place.delete(path)

    def release(self) -> None:
        # Still locked: what is removed here is nobody else's.
        if _is_at(self._file, self.path):
            with suppress(OSError):
                self.path.unlink()
        self._file.close()

    def _take(self) -> IO[bytes]:
        """The lock file, locked."""
        patience = time.monotonic() + WORKERS_END_WITHIN_S
        try:
            while True:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # The last holder removes it, and its folder.
                    # Not through a link, which may lead to anything.
                    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
                    file = os.fdopen(os.open(self.path, flags, 0o666), "a+b", buffering=0)
                    self._refuse_foreign(_read_anew(file))
                    if self._lock(file):
                        return file
                    record = _read_anew(file)
                    file.close()
                    if time.monotonic() > patience:
                        self._refuse(record)
                time.sleep(0.05)
        except OSError as error:
            raise WorkError(f"{self.place}: cannot be written: {error.strerror}") from error

    def _lock(self, file: IO[bytes]) -> bool:
        """Makes the lock one's own, if nobody has it and the file is still the one at its path."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(file, self.path):
                return False
            file.truncate(0)
            file.write(self._record())
            # This lets go of the lock for a moment, in which another one may take it.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            file.truncate(0)
            file.write(self._record())
            logger.warning(
                f"{self.place}: this file system knows no locks; see to it that nothing "
                "else writes here meanwhile"
            )
        return self._is_own(_read_anew(file))

    @contextmanager
    def _shared(self) -> Iterator[None]:
        """Shares the lock, unless it was lost."""
        try:
            file = self.path.open("rb", buffering=0)
        except FileNotFoundError:
            self._lost()
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lost()
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            if not self._is_own(file.read()):
                self._lost()
            yield


def _read_anew(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is the one that the path names now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False
