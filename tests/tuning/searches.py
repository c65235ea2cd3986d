"""Searches for tests: the command, and what it leaves behind."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY

__all__ = ["SMALL", "SPACE", "command", "killed", "rows", "run", "timeless", "told"]

SMALL = ("--backbone", "timm:test_resnet", "--weights", "none", "--image-size", "64")
SPACE = """
lr = {low = 0.001, high = 0.1, log = true}
batch_size = [8, 16, 32]
epochs = {low = 2, high = 4}
head_width = 16
"""


def command(shards: Path, output: Path, space: Path, *more: object) -> list[str]:
    words = ["search", "--shards", shards, "--output", output, "--space", space, *SMALL, *more]
    return [sys.executable, "-m", "tuning", *map(str, words)]


def run(words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, "RAY_AUTH_MODE": "disabled", **environment},
    )


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "results.csv").open() as file:
        return list(csv.DictReader(file))


def told(output: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((output / "best.json").read_text())
    return value


WHEN_AND_WHERE = ("seconds", "node")


def timeless(output: Path) -> list[dict[str, str]]:
    """The table, without what differs between two searches that are the same."""
    return [{k: v for k, v in row.items() if k not in WHEN_AND_WHERE} for row in rows(output)]


def killed(words: list[str], output: Path, num_over: int) -> None:
    """Begins a search, and kills its driver when so many trials are over."""
    process = subprocess.Popen(
        words,
        cwd=REPOSITORY,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    while len(list((output / "trials").glob("*.json"))) < num_over and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
