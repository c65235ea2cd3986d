"""`make gpu` works at once where there is a GPU: rehearsed without one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.environment import REPOSITORY
from benchmarks.gpu.context import Context
from benchmarks.gpu.steps import Step, all_steps, run_step
from benchmarks.gpu.table import table


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_step_runs_and_has_a_row_in_the_table(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    command = [sys.executable, "-m", "benchmarks.gpu", "--smallest", "--seconds", "560"]
    command += ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "output")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    logs = tmp_path / "work/results/log"
    assert done.returncode == 0, done.stderr + "".join(p.read_text()[-500:] for p in logs.iterdir())
    assert {p.name for p in (tmp_path / "output").iterdir()} == {"gpu.json", "gpu.md", "gpu.tar.gz"}
    told = json.loads((tmp_path / "output/gpu.json").read_text())
    groups = all_steps(Context(tmp_path, 1, smallest=True))
    names = [step.name for group in groups for step in group]
    assert sorted(step["name"] for step in told["steps"]) == sorted(names)
    assert [step for step in told["steps"] if step["exit_code"] != 0] == []
    assert told.keys() > {"versions", "check", "grid", "model", "accuracy", "search", "serve"}
    results = [*told["check"].values(), *told["grid"]["results"], *told["model"]]
    assert [result for result in results if "failed" in result] == []
    goals = (tmp_path / "output/gpu.md").read_text().split("## Steps")[0]
    assert "not measured" not in goals


@pytest.mark.slow
def test_a_step_that_hangs_ends_alone_with_what_it_started(tmp_path: Path) -> None:
    child = "import time; time.sleep(600)"
    hang = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True);"
        "time.sleep(600)"
    )
    context = Context(tmp_path, seconds=60, smallest=True)
    (context.results / "log").mkdir(parents=True)
    outcome = run_step(context, Step("hangs", "right", 11, ["-c", hang]))
    assert outcome.exit_code not in (0, None)
    assert outcome.seconds < 30
    pid = int((context.results / "log/hangs.txt").read_text())
    until = time.monotonic() + 10
    while running(pid):
        assert time.monotonic() < until


def running(pid: int) -> bool:
    """Whether a process is there, and not only its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_step_without_time_is_left_out(tmp_path: Path) -> None:
    outcome = run_step(Context(tmp_path, seconds=5, smallest=True), Step("late", "fast", 60, []))
    assert outcome.exit_code is None


def test_what_was_measured_on_a_gpu_is_a_row_a_goal() -> None:
    folder = REPOSITORY / "benchmarks/results/nvidia-h200"
    page = table(json.loads((folder / "gpu.json").read_text()))
    assert page == (folder / "gpu.md").read_text()
    rows = page.split("## Steps")[0].splitlines()
    assert "| loader, from originals: 8,000 photos/s | 20,620 photos/s |" in rows
    assert "| model only, compiled | not measured |" in rows
