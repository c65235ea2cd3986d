"""Runs where they are launched: on a Ray cluster, and as a SageMaker training job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bintally.errors import UsageError
from tests.conftest import REPOSITORY
from tests.training.runs import arguments, same_tensors, settings, torchrun
from tests.training.survival.test_survival import timeless
from training.config import FitConfig
from training.launch.sagemaker import CHECKPOINTS, with_job

JOB = {"SM_MODEL_DIR": "/opt/ml/model", "SM_CHANNEL_SHARDS": "/opt/ml/input/data/shards"}


def test_outside_of_a_job_a_command_line_stays_as_it_is() -> None:
    words = ["fit", "--shards", "s", "--run", "r"]
    assert with_job(words, {"SM_HPS": '{"lr": 1}'}) == words


def test_a_job_is_a_command_line() -> None:
    settings = {"lr": 0.01, "batch_size": "64", "profile": True, "compile": "false"}
    words = with_job(["fit"], JOB | {"SM_HPS": json.dumps(settings)})
    assert words == [
        *("fit", "--run", CHECKPOINTS, "--resume", "--shards", "/opt/ml/input/data/shards"),
        *("--lr", "0.01", "--batch-size", "64", "--profile"),
    ]
    assert with_job(["evaluate", "--split", "test"], JOB) == ["evaluate", "--split", "test"]


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({"profile": False, "compile": "True"}, ["--compile"]),
        ({"where": None, "cache": "null"}, []),
        ({"stop_on": ["overfit", "dead-relu"]}, ["--stop-on", "overfit", "dead-relu"]),
        (
            {"stop_on": '["overfit"]', "where": "[count"},
            ["--stop-on", "overfit", "--where", "[count"],
        ),
        ({"lr": 1e-05, "image-size": 96}, ["--lr", "1e-05", "--image-size", "96"]),
    ],
)
def test_hyperparameters_of_any_type_are_flags(
    settings: dict[str, object], flags: list[str]
) -> None:
    words = with_job(["fit"], JOB | {"SM_HPS": json.dumps(settings)})
    assert words[6:] == flags


def test_flags_win_over_the_job() -> None:
    assert with_job(["fit", "--run", "mine"], JOB)[-2:] == ["--run", "mine"]


@pytest.mark.parametrize("wrong", ["[1]", "{", '{"lr": {}}'])
def test_hyperparameters_that_are_none_are_a_usage_error(wrong: str) -> None:
    with pytest.raises(UsageError, match="SM_HPS"):
        with_job(["fit"], JOB | {"SM_HPS": wrong})


@pytest.mark.slow
def test_the_command_runs_as_a_job(shards: Path, tmp_path: Path) -> None:
    hyperparameters = {"backbone": "timm:test_resnet", "weights": "none", "image_size": 64}
    hyperparameters |= {"epochs": 1, "batch-size": 16, "preset": "capstone"}
    result = subprocess.run(
        [sys.executable, "-m", "training", "fit", "--run", tmp_path / "checkpoints"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "SM_CHANNEL_TRAINING": str(shards),
            "SM_MODEL_DIR": str(tmp_path / "model"),
            "SM_OUTPUT_DATA_DIR": str(tmp_path / "output"),
            "SM_HPS": json.dumps(hyperparameters),
        },
    )
    assert result.returncode == 0, result.stderr
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["best.pt"]
    output = {path.name for path in (tmp_path / "output").iterdir()}
    assert output == {"metrics.jsonl", "evaluation.json", "report.html", "rules.json"}


def on_ray(config: FitConfig) -> subprocess.CompletedProcess[str]:
    """Trains with two workers on a Ray cluster of this machine alone."""
    command = ["training", "fit", *arguments(config), "--ray", "local", "--workers", "2"]
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        # Whatever token this machine's user may have for other clusters.
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_ray_trains_what_torchrun_trains(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, tmp_path / "torchrun", trainable="head", batch_size=15)
    result = torchrun(2, "bintally", "fit", *arguments(config))
    assert result.returncode == 0, result.stderr
    other = replace(config, run=tmp_path / "ray")
    result = on_ray(other)
    assert result.returncode == 0, result.stderr
    assert same_tensors(other.run / "last.pt", config.run / "last.pt")
    assert timeless(other.run) == timeless(config.run)


@pytest.mark.slow
def test_a_mistake_on_ray_is_one_line_too(shards: Path, tmp_path: Path) -> None:
    result = on_ray(settings(shards, tmp_path, batch_size=10_000))
    assert result.returncode == 2, result.stderr
    assert "error: --batch-size 10000: the train split has only 67 samples" in result.stderr
