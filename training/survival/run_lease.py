"""Whoever trains a run holds its folder: two at once would write one on the other's checkpoints."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bintally.errors import WorkError
from bintally.storage.lease import Lease
from bintally.storage.opening import open_place, take_lease
from training.launch.distributed import Process
from training.launch.launcher import launchers

__all__ = ["hold"]

REPLACED_WITHIN_S = 40.0
"""torchrun's agents give the processes that they replace 30 s to end."""


@contextmanager
def hold(run: Path, process: Process) -> Iterator[None]:
    """Has the first process hold a run's folder for the time of the context.

    Raises `WorkError` on all processes where another one holds it.
    """
    with ExitStack() as held:
        process.let_first(lambda: held.enter_context(_take(run)) and None)
        yield


def _take(run: Path) -> Lease:
    until = time.monotonic() + (REPLACED_WITHIN_S if launchers(os.environ) else 0)
    while True:
        try:
            return take_lease(open_place(run))
        except WorkError:
            if time.monotonic() > until:
                raise
            time.sleep(1)
