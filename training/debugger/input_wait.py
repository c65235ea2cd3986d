"""How long steps stand still until their input is there."""

from __future__ import annotations

import time
from collections import deque

import torch

__all__ = ["Waiting"]


class Waiting:
    """Adds up the time in its context; on a GPU, the time that the GPU's stream stands there.

    An engine hands out a batch that the GPU has still to decode, and the model's work queues up
    behind it: the clock of the process that asks sees nothing of that wait. Two events in the
    stream do, one before what the batch makes it wait for and one after.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._began = 0.0
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        """Those that the GPU may not have passed yet."""

    def __enter__(self) -> None:
        if self._on_gpu:
            asked, there = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            asked.record()
            self._events.append((asked, there))
        else:
            self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        if self._on_gpu:
            self._events[-1][1].record()
            while self._events and self._events[0][1].query():
                self._add()
        else:
            self._seconds += time.monotonic() - self._began

    def seconds(self) -> float:
        """In all so far; on a GPU when it has come so far, which is waited for."""
        while self._events:
            self._events[0][1].synchronize()
            self._add()
        return self._seconds

    def _add(self) -> None:
        asked, there = self._events.popleft()
        self._seconds += asked.elapsed_time(there) / 1000
