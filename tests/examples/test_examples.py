"""The examples run as they stand, and are short."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(*words: object, launcher: list[str] | None = None) -> str:
    done = subprocess.run(
        [*(launcher or [sys.executable]), *map(str, words)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(example: Path) -> None:
    assert len(example.read_text().splitlines()) <= 60


def test_a_loop_of_ones_own_resumes_exactly_and_runs_under_torchrun(
    shards: Path, tmp_path: Path
) -> None:
    example = REPOSITORY / "examples/torch_loop.py"
    assert "epoch 2" in run(example, shards, tmp_path / "whole.pt")
    # What one process leaves after its first epoch, it goes on with.
    text = example.read_text().replace("EPOCHS, SAVE_EVERY = 2, 10", "EPOCHS, SAVE_EVERY = 1, 10")
    (tmp_path / "first.py").write_text(text)
    run(tmp_path / "first.py", shards, tmp_path / "parts.pt")
    run(example, shards, tmp_path / "parts.pt")
    whole, parts = (
        torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "parts.pt")
    )
    assert whole["loader"] == parts["loader"]
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name]), name
    assert "epoch 2" in run(example, shards, tmp_path / "both.pt", launcher=TORCHRUN)


def test_timms_helpers_train_on_our_loader(shards: Path) -> None:
    assert "epoch 2: loss" in run(REPOSITORY / "examples/timm_loop.py", shards, "test_resnet")


def test_lightning_trains_on_our_loader(shards: Path) -> None:
    pytest.importorskip("lightning")
    assert "'accuracy':" in run(REPOSITORY / "examples/lightning_fit.py", shards)
