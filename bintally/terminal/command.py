"""How every command ends: 0 done, 1 damage found or work failed, 2 bad usage; never a traceback
for a user's mistake.

A stage raises `UsageError` for what the user can mend by calling again differently, and
`WorkError` for what went wrong with the data or on the way. Anything else is our own bug and keeps
its traceback.
"""

from __future__ import annotations

import io
import logging
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from bintally.errors import CommandError
from bintally.machine import open_files_limit
from bintally.terminal.progress import say

__all__ = ["main", "run_command"]


class Command(Protocol):
    """A command line that was read: a dataclass of its options."""

    def execute(self) -> int:
        """Does the work; returns the exit code."""


def main(
    commands: Any,
    words: Sequence[str],
    *,
    prog: str,
    description: str | None = None,
    rewrite: Callable[[Sequence[str]], Sequence[str]] = list,
) -> int:
    """Reads a command line as one of `commands`, a dataclass or a union of some, and runs it.

    `rewrite` may put words into it first.
    """

    def execute() -> int:
        import tyro

        command: Command = tyro.cli(
            commands,
            args=rewrite(words),
            prog=prog,
            description=description,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
        )
        return command.execute()

    prepare_process()
    return run_command(execute)


class _BesideBars(logging.Handler):
    """Shows what the library logs, and breaks no progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"{record.levelname.lower()}: {self.format(record)}")


def prepare_process() -> None:
    """Makes up for what a process may be started without: standard streams, characters in them
    beyond ASCII, more than a few open files, and OpenMP threads that give way; to be called before
    PyTorch is imported."""
    # A closed stream's number would go to the next file, and errors be written into that.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    open_files_limit()
    library = logging.getLogger("bintally")
    library.addHandler(_BesideBars())
    library.propagate = False
    # A thread that has done its part of an operator waits for the others. Where it spins meanwhile,
    # as it does by default, it holds up the very thread that shares its core with a neighbour:
    # EfficientNet-Lite0 on two cores, one of them also another session's, made 3.2 photos/s, and
    # 12.2 with threads that sleep; 22.5 and 21.4 without a neighbour (15.5 with one of our own
    # session that is niced, 21.6 spinning).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def run_command(command: Callable[[], int | None]) -> int:
    """Runs `command` and returns the process's exit code, with one line on stderr for an error."""
    try:
        return command() or 0
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        # Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _reader_has_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more (`… | head`)."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
