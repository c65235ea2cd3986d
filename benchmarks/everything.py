"""All benchmarks in turn: `python -m benchmarks all`, see `Everything` in `__main__`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.page import PAGE, page, summary
from bintally.errors import UsageError, WorkError
from bintally.storage.folder import write_atomically
from bintally.terminal.progress import say

__all__ = ["run"]


def run(benchmarks: Mapping[str, Callable[[], int]], folder: Path) -> int:
    """Runs them and writes the page of what is in the folder then; 1 where one failed.

    A benchmark that needs what is not here (`UsageError`) is left out, and the page says why.
    """
    status, left_out = 0, {}
    for name, benchmark in benchmarks.items():
        say(f"== {name}")
        try:
            status |= benchmark()
        except UsageError as error:
            left_out[name] = str(error)
            say(f"left out: {error}")
        except WorkError as error:
            say(f"error: {error}")
            status = 1
    write_atomically(folder / PAGE, page(folder, left_out).encode())
    print(f"\n{summary(folder)}\n{folder / PAGE}")
    return status
