"""How a command ends."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import REPOSITORY

WORDY = "print('a line\\n' * 100_000)"
BROKEN = "(_ for _ in ()).throw(BrokenPipeError('of a process of ours'))"


def start(work: str) -> subprocess.Popen[str]:
    """A process with a command that does `work`."""
    imports = "import sys; from bintally.terminal.command import run_command"
    code = f"{imports}; sys.exit(run_command(lambda: {work}))"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_ends_quietly_when_its_reader_has_gone() -> None:
    process = start(WORDY)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "a line\n"
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 1)
    process.stderr.close()


def test_another_broken_pipe_is_told() -> None:
    _, told = start(BROKEN).communicate()
    assert told.endswith("BrokenPipeError: of a process of ours\n")
