"""Runs for the tests of training: settings, the command, torchrun, and their comparison."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from bintally.counting.checkpoint import read_checkpoint
from tests.conftest import REPOSITORY
from training.config import FitConfig

SMALL: dict[str, Any] = {
    "backbone": "timm:test_resnet",
    "weights": "none",
    "image_size": 64,
    "epochs": 2,
    "batch_size": 16,
    "precision": "fp32",
}


def settings(shards: Path, run: Path, **more: Any) -> FitConfig:
    return FitConfig(str(shards), run, **(SMALL | more))


class Decoding(FitConfig):
    """A frozen backbone sees every photo anew in each epoch, as with other augmentations."""

    uses_features = False


def decoding(shards: Path, run: Path, **more: Any) -> FitConfig:
    return Decoding(str(shards), run, **(SMALL | more))


def arguments(config: FitConfig) -> list[str]:
    """The command line that says what `config` says."""
    words = ["--shards", config.shards, "--run", str(config.run)]
    for name in (*SMALL, "trainable", "checkpoint_every_minutes", "lr"):
        words += [f"--{name.replace('_', '-')}", str(getattr(config, name))]
    return [*words, "--resume"] if config.resume else words


def torchrun(processes: int, *command: object) -> subprocess.CompletedProcess[str]:
    """Runs one of our commands under torchrun, without a fixed port."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    # Without the two dashes torchrun takes our --run for one of its own options.
    launcher += [f"--nproc-per-node={processes}", "-m", "--"]
    return subprocess.run(
        [*launcher, *map(str, command)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def same_tensors(a: Path, b: Path) -> bool:
    (one, _), (two, _) = read_checkpoint(a), read_checkpoint(b)
    return all(torch.equal(one.model[k], two.model[k]) for k in one.model | two.model)
