"""Progress of long work: a bar on a terminal, now and then a plain line elsewhere; on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

__all__ = ["Progress", "say"]

LINE_INTERVAL_S = 20.0


def say(line: str) -> None:
    """Prints a line about the work going on, without breaking a bar."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


class Progress:
    """Counts work done. A context manager; `update` is called as the work goes on."""

    def __init__(self, task: str, total: int, unit: str) -> None:
        """`task` is what is done, `total` how many `unit` (plural) there are of it."""
        self._task, self._total, self._unit = task, total, unit
        self._done = 0
        self._began = self._said = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(desc=task, total=total, unit=f" {unit}", dynamic_ncols=True)

    def update(self, done: int = 1) -> None:
        """`done` more are done."""
        self._done += done
        if self._bar is not None:
            self._bar.update(done)
        elif time.monotonic() - self._said > LINE_INTERVAL_S:
            self._said = time.monotonic()
            rate = self._done / (self._said - self._began)
            shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
            say(f"{self._task}: {self._done:,} of {self._total:,} {self._unit}, {shown}/s")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
