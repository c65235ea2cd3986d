"""What can end a run early or interrupt it: SIGTERM, the clock, a loss that goes astray."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from bintally.errors import WorkError
from training.launch.distributed import Agreement, Process
from training.loop import Step

__all__ = ["Diverged", "LossDiverged", "Survival", "Terminated", "termination"]

EXPLODED = 20.0
"""A loss so many times that of guessing, ln(classes), does not come back by itself."""
LAG = 2
"""Steps after which a GPU's loss is read: it has long been computed, so nobody waits for it."""
NEVER = 2**62
"""Above the number of any step."""
NAMED_IDS = 12
"""Photos of a batch that an error names."""


class Terminated(Exception):
    """The run was asked to end, and all processes know it."""


class Diverged(Exception):
    """The loss of a step is no number any more, or absurdly high."""

    def __init__(self, number: int, loss: float | None) -> None:
        super().__init__(number)
        self.number = number
        """The step, of the run, from 0."""
        self.loss = loss
        """Mean over the process's own samples; None where another process saw it."""

    def explain(self, ids: Sequence[str]) -> str:
        """What went wrong with the batch of these photos."""
        loss = "not finite or far too high" if self.loss is None else f"{self.loss:.4g}"
        named = ", ".join(ids[:NAMED_IDS])
        more = f" and {len(ids) - NAMED_IDS} more" if len(ids) > NAMED_IDS else ""
        return f"the loss is {loss}; the batch was {named}{more}"


class LossDiverged(WorkError):
    """What a run ends with whose loss went astray, told in a line."""


@contextmanager
def termination() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, for the time of the context, instead of ending the process.

    Only a process's main thread can catch signals; elsewhere (in a Ray worker) it is never set.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    before = signal.signal(signal.SIGTERM, lambda *_: requested.set())
    try:
        yield requested
    finally:
        signal.signal(signal.SIGTERM, before)


class Survival:
    """Looks after a run, between its steps, without ever waiting for a device."""

    def __init__(
        self,
        process: Process,
        requested: threading.Event,
        num_classes: int,
        save_every_minutes: float,
    ) -> None:
        self._process, self._requested = process, requested
        self._agreement = Agreement(process)
        self._most = EXPLODED * math.log(max(2, num_classes))
        self._interval_s = 60 * save_every_minutes
        self._saved_at = time.monotonic()
        self._losses: deque[tuple[int, torch.Tensor, Any]] = deque()
        self._seen: tuple[int, float] | None = None

    def after_step(self, step: Step) -> bool:
        """Whether it is time for a checkpoint; on all processes the same.

        Raises `Terminated` or `Diverged`, on all of them at the same step.
        """
        self._observe(step)
        due = (
            self._process.is_first
            and self._interval_s > 0
            and time.monotonic() - self._saved_at > self._interval_s
        )
        return self._heed(due)

    def pause(self) -> None:
        """As `after_step`, where a run may end between steps; on all processes at once."""
        self._heed()

    def after_steps(self) -> None:
        """Raises `Diverged` where any step so far went astray: after the last one of an epoch."""
        self._look(lag=0)
        self._heed()
        self._act(self._agreement.settle())

    def saved(self) -> None:
        """A checkpoint was written: the clock begins anew."""
        self._saved_at = time.monotonic()

    def close(self) -> None:
        """Ends what is on its way between processes."""
        self._agreement.settle()

    def _heed(self, due: bool = False) -> bool:
        # Of several steps the first one counts.
        astray = 0 if self._seen is None else NEVER - self._seen[0]
        return self._act(self._agreement.exchange([self._requested.is_set(), astray, due]))

    def _act(self, agreed: list[int]) -> bool:
        if not agreed:
            return False
        terminate, astray, due = agreed
        if astray:
            number = NEVER - astray
            seen, loss = self._seen or (None, None)
            raise Diverged(number, loss if seen == number else None)
        if terminate:
            raise Terminated
        return bool(due)

    def _observe(self, step: Step) -> None:
        """Keeps a step's loss, and looks at those that are old enough."""
        on_gpu = step.loss.device.type == "cuda"
        event = None
        loss = step.loss
        if on_gpu:
            loss = torch.empty_like(loss, device="cpu", pin_memory=True)
            loss.copy_(step.loss, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._losses.append((step.number, loss, event))
        self._look(LAG if on_gpu else 0)

    def _look(self, lag: int) -> None:
        """Looks at the losses of all steps but the last `lag`."""
        while len(self._losses) > lag:
            number, loss, event = self._losses.popleft()
            if event is not None:
                event.synchronize()
            value = float(loss)
            if self._seen is None and not value < self._most:
                self._seen = number, value
