"""Checkpoints are written in the background, while the model goes on training."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import torch

from bintally.counting.checkpoint import Checkpoint, checkpoint_bytes
from bintally.errors import CommandError, WorkError
from bintally.storage.place import Place
from bintally.terminal.progress import say

__all__ = ["CheckpointWriter"]

REST_S = 1.0
"""From the end of a write to the next: a head's epoch takes a tenth of this, and writing each would
take the cores from it."""


class CheckpointWriter:
    """Writes to a run's folder, and to its mirror where there is one, on a thread of its own.

    What comes while it writes or rests waits; of several with the same name only the newest. Files
    that came together are written in their order, so when a later one is there, so are the others.
    """

    def __init__(self, folder: Place, mirror: Place | None) -> None:
        self._folder, self._mirror = folder, mirror
        self._waiting: dict[str, Checkpoint | bytes] = {}
        self._writing = self._hurry = False
        self._error: BaseException | None = None
        self._copied: torch.cuda.Event | None = None
        """When a GPU has passed it, what was submitted last is in this machine's memory."""
        self._not_mirrored: dict[str, CommandError] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(self, files: Mapping[str, Checkpoint | bytes]) -> None:
        """Takes files to write, checkpoints as they are now.

        Raises what went wrong with an earlier one.
        """
        made: dict[int, torch.Tensor] = {}
        copies = {
            name: file if isinstance(file, bytes) else Checkpoint(**_copy(vars(file), made))
            for name, file in files.items()
        }
        copied = None
        if torch.cuda.is_initialized():
            copied = torch.cuda.current_stream().record_event()
        with self._changed:
            self._raise()
            for name, file in copies.items():
                # Out and in again: the order is that of the newest ones.
                self._waiting.pop(name, None)
                self._waiting[name] = file
            self._copied = copied
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
            self._thread.start()

    def flush(self) -> None:
        """Returns when all is written. Raises what went wrong."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._waiting or self._writing) or self._error)
            self._hurry = False
            self._raise()

    def finish(self) -> None:
        """Returns when all is written, to the mirror as well.

        Raises what went wrong; `WorkError` where the folder has it and the mirror has not.
        """
        self.flush()
        if self._mirror is None:
            return
        for name in [*self._not_mirrored]:
            self._copy_to(self._mirror, name, self._folder.get(name))
        for error in self._not_mirrored.values():
            names = ", ".join(self._not_mirrored)
            raise WorkError(f"{self._folder} has all, but --mirror lacks {names}: {error}")

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        rested = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                self._changed.wait_for(lambda: self._hurry, max(0, rested - time.monotonic()))
                files, self._waiting = self._waiting, {}
                copied, self._writing = self._copied, True
            try:
                if copied is not None:
                    copied.synchronize()
                self._write(files)
            except BaseException as error:  # The run's own thread raises it.
                self._error = error
            rested = time.monotonic() + REST_S
            with self._changed:
                self._writing = False
                self._changed.notify_all()

    def _write(self, files: Mapping[str, Checkpoint | bytes]) -> None:
        for name, file in files.items():
            data = file if isinstance(file, bytes) else checkpoint_bytes(file)
            self._folder.put(name, data)
            if self._mirror is not None:
                self._copy_to(self._mirror, name, data)

    def _copy_to(self, mirror: Place, name: str, data: bytes) -> None:
        try:
            mirror.put(name, data)
        except CommandError as error:
            # The folder has it; a server that is away, or says no, should end no training.
            if not self._not_mirrored:
                say(f"warning: {error}; training goes on")
            self._not_mirrored[name] = error
        else:
            self._not_mirrored.pop(name, None)


def _copy(value: Any, made: dict[int, torch.Tensor]) -> Any:
    """The same, its tensors on the CPU and independent of what becomes of them; those that are
    `made` already, for last and best have most in common, are used again.

    What comes from a GPU is there when its stream has come so far: a thousand copies, each waited
    for, held a step up for a quarter of a second.
    """
    if isinstance(value, torch.Tensor):
        if id(value) not in made:
            on_gpu = value.is_cuda
            copy = torch.empty_like(value, device="cpu", requires_grad=False, pin_memory=on_gpu)
            made[id(value)] = copy.copy_(value.detach(), non_blocking=on_gpu)
        return made[id(value)]
    if isinstance(value, Mapping):
        return {key: _copy(item, made) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy(item, made) for item in value)
    return value
