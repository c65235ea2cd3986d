"""One process at a time writes to a place: whoever holds its lease.

In a folder the lease is a lock (`flock`) that the system takes from a process as soon as it ends;
a process that is merely stopped keeps it. S3 knows no locks: there it is an object that its holder
writes anew every few seconds, by conditional puts, and that whoever has seen it unchanged for
`TIME_TO_LIVE_S` may take over. No two machines' clocks are compared.

The holder, and the workers that it gives the lease to, write through it. A holder that was stopped
for so long that another one took over notices before it writes, and ends.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, NoReturn

from bintally.command import UsageError, WorkError
from bintally.places import LOCK, Folder, Place
from bintally.progress import say

if TYPE_CHECKING:
    from bintally.s3 import S3Prefix

__all__ = ["Lease", "take_lease"]

TIME_TO_LIVE_S = 30.0
"""How long an S3 holder may be silent. Longer than S3 waits for the rest of a request (20 s), so
that what a stopped holder was just sending is dead, too, when another one takes over."""
RENEWED_EVERY_S = 5.0
WORKERS_END_WITHIN_S = 3.0
"""How long the workers of a holder that was killed may still be writing, in a folder."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class Lease(ABC):
    """The right to write to a place. A context manager that gives it back; picklable for workers,
    whose copies write under it and end with the holder's."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.token = secrets.token_hex(16)
        self._since = datetime.now().astimezone().isoformat(" ", "seconds")

    @abstractmethod
    def check(self) -> None:
        """Raises `WorkError` if another process has taken over meanwhile."""

    def put(self, path: str, *pieces: bytes) -> None:
        """Writes an object, as `Place.put` does, unless the lease was lost: `WorkError` then."""
        self.check()
        self.place.put(path, *pieces)

    def delete(self, path: str) -> None:
        """Removes an object, as `Place.delete` does, unless the lease was lost."""
        self.check()
        self.place.delete(path)

    @abstractmethod
    def release(self) -> None:
        """Gives the lease back, and leaves nothing of it in the place."""

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _record(self, renewals: int = 0) -> bytes:
        """What the lock holds: whose it is, for others to read."""
        value = {
            "token": self.token,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": self._since,
            "renewals": renewals,
        }
        return json.dumps(value).encode()

    def _is_own(self, record: bytes) -> bool:
        return _read(record).get("token") == self.token

    def _refuse(self, record: bytes) -> NoReturn:
        raise WorkError(
            f"{self.place}: {_describe(record)} is writing here; wait for it, or end it, and call "
            "again"
        )

    def _refuse_foreign(self, record: bytes) -> None:
        """Raises `UsageError` if what lies where the lock goes is no lock; an empty one is."""
        if record and "token" not in _read(record):
            raise UsageError(f"{self.place} holds {LOCK}, which is nothing of ours; move it away")

    def _lost(self) -> NoReturn:
        raise WorkError(
            f"{self.place}: another process took over here, or removed {LOCK}, while this one (pid "
            f"{os.getpid()}) was stopped or cut off; this one writes nothing more"
        )


def take_lease(place: Place) -> Lease:
    """The lease of a place, whose folder is made where it is missing.

    `WorkError`, with the holder's name, if another process holds it. Whether a holder on S3 is
    alive shows after seconds; that it is not, after `TIME_TO_LIVE_S`.
    """
    if isinstance(place, Folder):
        return FolderLease(place)
    from bintally.s3 import S3Prefix

    assert isinstance(place, S3Prefix)
    return S3Lease(place)


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
            say(
                f"warning: {self.place}: this file system knows no locks; see to it that nothing "
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


class S3Lease(Lease):
    """An object that its holder keeps renewing."""

    place: S3Prefix

    def __init__(self, place: S3Prefix) -> None:
        super().__init__(place)
        self._renewals = 0
        self._version = self._take()
        self._conditional = self._try_conditions()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lease")
        self._thread.start()

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "token": self.token}

    def check(self) -> None:
        try:
            record, _ = self.place.get_version(LOCK)
        except FileNotFoundError:
            self._lost()
        if not self._is_own(record):
            self._lost()

    def release(self) -> None:
        self._ended.set()
        self._thread.join(TIME_TO_LIVE_S)
        # Nobody takes over what has just been renewed, so what is deleted is our own.
        with suppress(WorkError, UsageError):
            self._renew()
            self.place.delete(LOCK)

    def _take(self) -> str:
        """Writes the object where there is none, or where its holder is silent."""
        seen, since = b"", 0.0
        while True:
            try:
                record, version = self.place.get_version(LOCK)
            except FileNotFoundError:
                self._put_if(None)  # Whose was written shows when it is read.
                continue
            now = time.monotonic()
            self._refuse_foreign(record)
            if self._is_own(record):
                return version
            if not seen:
                say(
                    f"{self.place}: {_describe(record)} has begun to write here; waiting up to "
                    f"{TIME_TO_LIVE_S:.0f} s to see whether it still does"
                )
                seen, since = record, now
            elif record != seen:
                self._refuse(record)
            elif now - since > TIME_TO_LIVE_S:
                self._put_if(version)
                continue
            time.sleep(RENEWED_EVERY_S / 5)

    def _put_if(self, version: str | None) -> str | None:
        return self.place.put_if(LOCK, self._record(self._renewals), version)

    def _try_conditions(self) -> bool:
        """Whether the server refuses what it must; there are some that do not know conditions."""
        refuses = all(self._put_if(version) is None for version in (None, '"no such version"'))
        if not refuses:
            say(
                f"warning: {self.place}: this S3 server ignores If-Match or If-None-Match, so that "
                "two processes could begin to write here at once; see to it that none does"
            )
        return refuses

    def _keep(self) -> None:
        while not self._ended.wait(RENEWED_EVERY_S):
            try:
                self._renew()
            except (WorkError, UsageError):
                # Either S3 is away, and comes back; or the lease is lost, and `check` says so.
                continue

    def _renew(self) -> None:
        self._renewals += 1
        if not self._conditional:
            self.check()
            self.place.put(LOCK, self._record(self._renewals))
            return
        version = self._put_if(self._version)
        if version is None:
            # Refused: another one has it; or it was ours, tried again after a lost answer.
            self.check()
            _, version = self.place.get_version(LOCK)
        self._version = version


def _read(record: bytes) -> dict[str, Any]:
    try:
        value = json.loads(record)
    except ValueError:
        return {}  # Its writer was killed just then.
    return value if isinstance(value, dict) else {}


def _describe(record: bytes) -> str:
    value = _read(record)
    if not value:
        return "another process"
    return f"process {value.get('pid')} on {value.get('host')}, since {value.get('since')},"


def _read_anew(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is the one that the path names now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False
