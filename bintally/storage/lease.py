"""One process at a time writes to a place: whoever holds its lease.

In a folder the lease is a lock (`flock`) that the system takes from a process as soon as it ends;
a process that is merely stopped keeps it. S3 knows no locks: there it is an object that its holder
writes anew every few seconds, by conditional puts, and that whoever has seen it unchanged for
`TIME_TO_LIVE_S` may take over. No two machines' clocks are compared.

The holder, and the workers that it gives the lease to, write through it. A holder that was stopped
for so long that another one took over notices before it writes, and ends.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from abc import ABC, abstractmethod
from datetime import datetime
from typing import Any, NoReturn

from bintally.errors import UsageError, WorkError
from bintally.storage.place import LOCK, Place

__all__ = ["Lease", "describe_holder"]


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

    def __exit__(self, *_: object) -> None:
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
            f"{self.place}: {describe_holder(record)} is writing here; wait for it, or end "
            "it, and call again"
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


def _read(record: bytes) -> dict[str, Any]:
    try:
        value = json.loads(record)
    except ValueError:
        return {}  # Its writer was killed just then.
    return value if isinstance(value, dict) else {}


def describe_holder(record: bytes) -> str:
    """Whose lock this is, in words."""
    value = _read(record)
    if not value:
        return "another process"
    return f"process {value.get('pid')} on {value.get('host')}, since {value.get('since')},"
