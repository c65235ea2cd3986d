"""The checkpoint that is served: checked, copied, and named for the replicas to find.

A replica that starts again must find a checkpoint that works, whatever lies under the name that the
user gave by then. So an accepted one is copied into a folder of the server's own, and the replicas
read it from there.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

from bintally.dataset.labels import Classes
from bintally.errors import UsageError
from bintally.storage.folder import write_atomically

__all__ = ["Check", "Release", "ReleaseWatcher", "current"]

CURRENT = "current.json"


@dataclass(frozen=True)
class Release:
    """A checkpoint that was found to work."""

    sha256: str
    classes: Classes
    file: str
    """Name of the copy in the folder."""


def current(folder: Path) -> Release:
    """The release that replicas serve."""
    return Release(**json.loads((folder / CURRENT).read_bytes()))


class Check:
    """Checks a checkpoint, in a process of its own, so that the one with the requests neither
    waits nor loads PyTorch. When this is made, the process runs.

    Raises `UsageError` where it cannot be started.
    """

    def __init__(self, file: Path, folder: Path) -> None:
        """`file` is the checkpoint, `folder` the server's own."""
        self._file, self._folder = file, folder
        try:
            self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
            self._found = self._pool.submit(_check, file, folder)
        except OSError as error:
            raise UsageError(f"{file}: no process could be started to check it: {error}") from error

    def accept(self) -> Release:
        """Makes the checkpoint the one that is served.

        Raises `UsageError` for a file that is no checkpoint, or whose model does not compute; what
        was served is then served on.
        """
        with self._pool:
            try:
                release = self._found.result()
            except BrokenProcessPool as error:
                raise UsageError(
                    f"{self._file}: the process that checked it died (out of memory?)"
                ) from error
        # The one before may be loading in a replica at this moment; the ones before that are not.
        served = self._folder / CURRENT
        keep = {release.file, current(self._folder).file if served.exists() else ""}
        write_atomically(served, json.dumps(asdict(release)).encode())
        for old in self._folder.glob("*.pt"):
            if old.name not in keep:
                old.unlink(missing_ok=True)
        return release


def _check(file: Path, folder: Path) -> Release:
    import torch

    from bintally.counting.checkpoint import read_checkpoint

    # The bytes that are checked are the bytes that are served, should the file change meanwhile.
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from error
    copy = folder / f"checking-{os.getpid()}.pt"
    write_atomically(copy, data)
    try:
        try:
            checkpoint, sha256 = read_checkpoint(copy)
        except UsageError as error:
            raise UsageError(str(error).replace(str(copy), str(file))) from error
        try:
            model, preprocessing = checkpoint.build()
            size = preprocessing.image_size
            with torch.inference_mode():
                logits = model(torch.zeros(1, 3, size, size))
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"{file}: its model cannot be built: {reason}") from error
        if logits.shape != (1, len(checkpoint.classes)) or not bool(logits.isfinite().all()):
            raise UsageError(f"{file}: its model does not compute finite numbers")
        copy.replace(folder / f"{sha256}.pt")
    finally:
        copy.unlink(missing_ok=True)
    return Release(sha256, checkpoint.classes, f"{sha256}.pt")


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
