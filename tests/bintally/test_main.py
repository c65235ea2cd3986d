"""The command `bintally`: all stages, whatever else is called as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from bintally.__main__ import STAGES
from tests.conftest import REPOSITORY


def bintally(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-m", "bintally", *words],
        cwd=folder,
        env=outside | environment,
        capture_output=True,
        text=True,
    )


def test_every_command_of_every_stage_is_one_of_bintally() -> None:
    from importlib import import_module

    for stage, names in STAGES.items():
        commands = import_module(f"{stage}.__main__").COMMANDS
        assert [c.__name__.lower() for c in get_args(commands) or [commands]] == [*names]


def test_it_knows_its_commands_and_says_so(tmp_path: Path) -> None:
    listed = bintally(tmp_path, "--help").stdout
    assert all(f"• {name}" in listed for names in STAGES.values() for name in names)
    assert "usage: bintally fit" in bintally(tmp_path, "fit", "--help").stdout
    assert "usage: bintally serve" in bintally(tmp_path, "serve", "--help").stdout
    wrong = bintally(tmp_path, "fti")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
    completion = bintally(tmp_path, "--tyro-print-completion", "bash")
    assert completion.returncode == 0
    assert "evaluate" in completion.stdout


@pytest.mark.parametrize(
    "kind", ["package", *(pytest.param(k, marks=pytest.mark.slow) for k in ("folder", "module"))]
)
def test_packages_of_ones_own_that_are_called_like_stages_are_left_alone(
    tmp_path: Path, kind: str
) -> None:
    for stage in STAGES:
        if kind == "module":
            (tmp_path / f"{stage}.py").write_text("raise SystemExit('not ours')")
            continue
        (tmp_path / stage).mkdir()
        if kind == "package":
            (tmp_path / stage / "__init__.py").write_text("raise SystemExit('not ours')")
    assert "usage: bintally build" in bintally(tmp_path, "build", "--help").stdout
    made = bintally(tmp_path, "synthesize", "--output", "bucket", "--images", "12")
    assert made.returncode == 0, made.stderr
    # Its workers are processes that find the packages by themselves.
    built = bintally(
        tmp_path, "build", "--source", "bucket", "--output", "shards", "--workers", "2"
    )
    assert built.returncode == 0, built.stderr


def test_one_that_stands_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "own/training").mkdir(parents=True)
    (tmp_path / "own/training/__init__.py").touch()
    own = str(tmp_path / "own")
    result = bintally(tmp_path, "fit", "--help", PYTHONPATH=f"{own}{os.pathsep}{REPOSITORY}")
    assert result.returncode == 2
    assert f"the package training is found in {own}/training" in result.stderr
    assert f"take {own} out of PYTHONPATH" in result.stderr


def test_a_current_folder_that_was_removed_is_no_error(tmp_path: Path) -> None:
    words = f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir ../gone && "
    command = f"{words} {sys.executable} -m bintally verify {tmp_path}/nothing"
    outside = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, shell=True, env=outside, capture_output=True, text=True)
    assert done.stderr == f"error: {tmp_path}/nothing: no such folder\n"


def test_help_that_nobody_reads_to_its_end_is_no_error() -> None:
    command = f"{sys.executable} -m bintally --help | head -1"
    done = subprocess.run(command, shell=True, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stderr == ""
