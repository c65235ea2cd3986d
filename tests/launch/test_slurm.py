"""The job scripts for Slurm: on two nodes, ended early, queued again, and as if nothing had been.

Slurm's own commands are stand-ins; torchrun, Ray and all else are real.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bintally.counting.checkpoint import read_checkpoint
from tests.conftest import REPOSITORY
from tests.launch.fake_slurm import Job, add_program
from tests.ray_nodes import free_port
from tests.training.runs import arguments, same_tensors, settings
from tests.training.survival.test_survival import timeless
from tests.tuning import searches

TORCHRUN = REPOSITORY / "docs/launch/slurm-torchrun.sbatch"
RAY = REPOSITORY / "docs/launch/slurm-ray.sbatch"


def script_port() -> int:
    """A free port that a script makes of a job's number."""
    while not 20_000 < (port := free_port()) < 40_000:
        pass
    return port


def submit(folder: Path, script: Path, *words: object, **variables: str) -> Job:
    folder.mkdir()
    return Job(folder, script, *words, port=script_port(), **variables)


def wait_until(true: Callable[[], bool], job: Job, script: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 240
    while not true():
        assert script.poll() is None, job.log
        assert time.monotonic() < until, job.log
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_of_two_nodes_goes_on_after_its_time_limit_and_a_preemption(
    shards: Path, tmp_path: Path
) -> None:
    config = settings(
        shards, tmp_path / "run", batch_size=4, epochs=6, checkpoint_every_minutes=1e-9
    )
    last = config.run / "last.pt"

    def position() -> tuple[int, int]:
        checkpoint, _ = read_checkpoint(last)
        return checkpoint.epoch, checkpoint.step

    job = submit(tmp_path / "job", TORCHRUN, *arguments(config))
    script = job.start()
    wait_until(lambda: last.exists() and position() > (0, 0), job, script)
    job.tell_of_the_time_limit(script)
    assert job.end(script) == 0, job.log
    assert job.is_requeued, job.log
    first = position()

    script = job.start()
    wait_until(lambda: position() > first, job, script)
    job.preempt(script)
    assert job.end(script) == 0, job.log
    assert job.is_requeued, job.log
    assert job.log.count("--resume goes on from there") == 2, job.log
    second = position()
    assert second < (6, 0), "it was ended before its end"

    assert job.end(job.start()) == 0, job.log
    assert not job.is_requeued
    assert f"resuming after epoch {second[0]}, step {second[1]}" in job.log
    whole = replace(config, run=tmp_path / "whole")
    undisturbed = submit(tmp_path / "undisturbed", TORCHRUN, *arguments(whole))
    assert undisturbed.end(undisturbed.start()) == 0, undisturbed.log
    assert "; 2 × cpu" in undisturbed.log, "a process on each node"
    assert same_tensors(last, whole.run / "last.pt")
    assert timeless(config.run) == timeless(whole.run)


@pytest.mark.slow
def test_a_mistake_ends_the_job_and_is_not_queued_again(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, tmp_path / "run", batch_size=10_000)
    job = submit(tmp_path / "job", TORCHRUN, *arguments(config))
    assert job.end(job.start()) != 0
    assert not job.is_requeued
    assert "error: --batch-size 10000: the train split has only 67 samples" in job.log


@pytest.fixture
def ray_folder() -> Iterator[str]:
    # In /tmp whatever TMPDIR says: a socket's path may have 107 bytes.
    with tempfile.TemporaryDirectory("", "ray-", "/tmp", ignore_cleanup_errors=True) as name:
        yield name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_on_two_nodes_goes_on_after_its_time_limit(
    shards: Path, tmp_path: Path, ray_folder: str
) -> None:
    space = tmp_path / "space.toml"
    space.write_text(searches.SPACE)
    output = tmp_path / "search"
    words = ["--shards", shards, "--space", space, *searches.SMALL, "--trials", 6]
    words += ["--output", output]
    job = submit(tmp_path / "job", RAY, *words, RAY_TMPDIR=ray_folder)
    # What keeps the ports of two nodes apart that are one machine.
    python = "import socket; print(socket.create_server(('', 0)).getsockname()[1])"
    add_program(
        job.programs,
        "ray",
        f"""
port() {{ python -c "{python}"; }}
set -- "$@" --object-store-memory=134217728 --dashboard-agent-listen-port=$(port)
case "$*" in *--head*) set -- "$@" --include-dashboard=false --ray-client-server-port=$(port);; esac
exec python -m ray.scripts.scripts "$@"
""",
    )
    script = job.start()
    wait_until(lambda: len(list((output / "trials").glob("*.json"))) >= 1, job, script)
    job.tell_of_the_time_limit(script)
    assert job.end(script) == 0, job.log
    assert job.is_requeued, job.log
    assert not (output / "best.json").exists(), "it was ended before its end"

    assert job.end(job.start()) == 0, job.log
    assert not job.is_requeued
    assert "trials are over already" in job.log
    alone = searches.command(shards, tmp_path / "alone", space, "--trials", 6, "--concurrency", 2)
    result = searches.run(alone)
    assert result.returncode == 0, result.stderr
    assert searches.timeless(output) == searches.timeless(tmp_path / "alone")
