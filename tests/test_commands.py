"""Every command: quick help, one clear line for a user's mistake, exit codes as documented."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Command

PACKAGES = ["sharding", "training", "tuning", "serving", "benchmarks"]


@pytest.mark.parametrize("package", PACKAGES)
def test_help_imports_nothing_heavy(package: str) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", package, "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "tyro" in imported
    heavy = {"torch", "numpy", "nvidia", "pyarrow", "boto3", "PIL", "timm", "obstore", "ray"}
    assert not imported & {*heavy, "optuna"}
    assert result.returncode == 0
    assert "usage:" in result.stdout


def mistakes(tmp: Path) -> dict[str, tuple[list[object], int, str]]:
    """Command lines, their exit codes, and what the one line must say."""
    empty, torn, nothing = tmp / "empty", tmp / "torn", tmp / "nothing"
    empty.mkdir()
    (torn / "train").mkdir(parents=True)
    (torn / "train/train-000000.tar").write_bytes(b"x")
    fake = tmp / "fake.pt"
    fake.write_bytes(b"no checkpoint")
    build: list[object] = ["sharding", "build", "--output", tmp / "out", "--source"]
    fit: list[object] = ["training", "fit", "--run", tmp / "run", "--shards"]
    return {
        "no such folder": ([*build, nothing], 2, "no such folder"),
        "an empty folder": ([*build, empty], 2, "no photos here"),
        "not a place": ([*build, "ftp://host/x"], 2, "not a place"),
        "shares that are no split": (
            [*build, empty, "--split", "0.9", "0.2", "0.2"],
            2,
            "add up to 1",
        ),
        "an unknown option": ([*build, empty, "--colour", "red"], 2, ""),
        "a Ray cluster that is not there": (
            [*build, empty, "--ray", "127.0.0.1:9"],
            2,
            "no Ray cluster answers there",
        ),
        "verify nothing": (["sharding", "verify", nothing], 2, "no such folder"),
        "verify an unfinished build": (["sharding", "verify", torn], 1, "no complete dataset"),
        "fit on an unfinished build": ([*fit, torn], 1, "no complete dataset"),
        "fit on an empty folder": ([*fit, empty], 2, "empty"),
        "search on an unfinished build": (
            ["tuning", "search", "--shards", torn, "--output", tmp / "search"],
            1,
            "no complete dataset",
        ),
        "a job that nobody takes": (
            ["tuning", "submit", "--address", "http://127.0.0.1:9", "--", "search"],
            2,
            "no dashboard of a Ray cluster answers",
        ),
        "evaluate what is no checkpoint": (
            ["training", "evaluate", "--shards", empty, "--checkpoint", fake],
            2,
            "not a checkpoint",
        ),
        "serve what is not there": (
            ["serving", "--checkpoint", nothing],
            2,
            "no such file",
        ),
        "predict without a checkpoint": (
            ["training", "predict", "--checkpoint", nothing, "x.jpg"],
            2,
            "No such file",
        ),
    }


FEW = (
    "no such folder",
    "an unknown option",
    "fit on an unfinished build",
    "serve what is not there",
)


@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_mistake_is_one_clear_line(tmp_path: Path, run: Command, few: bool) -> None:
    for mistake, (arguments, code, words) in mistakes(tmp_path).items():
        if few and mistake not in FEW:
            continue
        result = run(*arguments)
        assert result.returncode == code, (mistake, result.stderr)
        assert words in result.stderr, mistake
        assert "Traceback" not in result.stderr, mistake
        if words:
            assert result.stderr.startswith("error: "), mistake
            assert result.stderr.count("\n") == 1, mistake
