"""The checkpoint that is served: a copy of the server's own, and a look at the user's file.

A worker that starts again must find a checkpoint that works, whatever lies under the name that the
user gave by then.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from bintally.errors import UsageError
from bintally.storage.folder import write_atomically

__all__ = ["ReleaseWatcher", "Releases"]


class Releases:
    """Copies of the user's file, of which the last two are kept: a worker may be loading the one
    before at the moment."""

    def __init__(self, file: Path, folder: Path) -> None:
        """`folder` is the server's own."""
        self.file, self._folder = file, folder
        self._numbers = itertools.count()

    def copy(self) -> Path:
        """The file as it is now. Raises `UsageError` where it cannot be read or kept."""
        copy = self._folder / f"{next(self._numbers)}.pt"
        try:
            write_atomically(copy, self.file.read_bytes())
        except OSError as error:
            raise UsageError(f"{self.file}: cannot be read: {error.strerror}") from error
        return copy

    def keep(self, *copies: Path) -> None:
        """Deletes the others."""
        for old in self._folder.glob("*.pt"):
            if old not in copies:
                old.unlink(missing_ok=True)


class ReleaseWatcher:
    """Takes note when a file is replaced or written to."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._taken = self._seen = self._state()

    def _state(self) -> tuple[int, int, int] | None:
        try:
            stat = self._file.stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    def changed(self) -> bool:
        """Whether there is a new file, and it has been left alone since the last look: half a copy
        is no checkpoint. Says so once."""
        state, before = self._state(), self._seen
        self._seen = state
        if state is None or state != before or state == self._taken:
            return False
        self._taken = state
        return True
