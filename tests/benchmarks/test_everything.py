"""What a run of all benchmarks may be relied on for: a page, a table, and what was left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.everything import run
from benchmarks.plot import write_plot
from bintally.errors import UsageError, WorkError
from tests.benchmarks.test_measure import ENVIRONMENT, measured, report
from tests.conftest import Command


def trial(folder: Path) -> int:
    table = report(measured("ours", [4, 8, 6], "ours"), measured("peer", [2, 2, 2]))
    table = replace(table, environment=replace(ENVIRONMENT, libraries={"ffcv": "not installed"}))
    table.write(folder)
    write_plot(table, folder)
    return 0


def without_tools() -> int:
    raise UsageError("nginx is needed")


def failing() -> int:
    raise WorkError("broken")


def test_the_page_holds_tables_plots_and_what_was_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run({"trial": lambda: trial(tmp_path), "sharding": without_tools}, tmp_path)
    assert status == 0
    page = (tmp_path / "index.md").read_text()
    assert "## Trial" in page
    assert "| **ours** | 6 (4–8) | 3.00 | – |" in page
    assert "![trial](trial.svg)" in page
    assert "Not installed here, and so left out: ffcv." in page
    assert "Left out: nginx is needed" in page
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["trial", "ours", "6", "things/s"],
        ["trial", "peer", "2", "things/s"],
    ]
    assert lines[-1] == str(tmp_path / "index.md")


def test_a_benchmark_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    assert run({"failing": failing, "trial": lambda: trial(tmp_path)}, tmp_path) == 1
    assert "## Trial" in (tmp_path / "index.md").read_text()


def test_an_unknown_benchmark_is_refused(run: Command, tmp_path: Path) -> None:
    result = run("benchmarks", "all", "--only", "colour", "--output", tmp_path)
    assert result.returncode == 2
    assert "none of sharding, loader" in result.stderr
