"""What a run survives: being asked to end, being killed, losing a process, machine or number."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from bintally.counting.checkpoint import (
    Checkpoint,
    checkpoint_bytes,
    parse_checkpoint,
    read_checkpoint,
)
from bintally.errors import WorkError
from bintally.storage.folder import Folder
from bintally.storage.opening import open_place
from bintally.storage.place import Place
from tests.conftest import REPOSITORY
from tests.training.runs import arguments, same_tensors, settings, torchrun
from training.config import FitConfig
from training.fit import fit
from training.launch.distributed import Process
from training.loop import Step
from training.survival.checkpoint_writer import CheckpointWriter
from training.survival.interruption import Diverged, Survival, Terminated

ALONE = Process(0, 1, 0, torch.device("cpu"))


def be_terminated(line: dict[str, Any]) -> None:
    """After an epoch, sends this process the signal that a machine's end announces itself with."""
    os.kill(os.getpid(), signal.SIGTERM)


def timeless(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: line[k] for k in ("epoch", "step", "lr", "train", "validation")} for line in lines]


@pytest.mark.parametrize("trainable", ["all", "head"])
def test_a_terminated_run_resumes_to_identical_weights(
    trainable: str, shards: Path, tmp_path: Path
) -> None:
    recipe = {"trainable": trainable, "ema": 0.9, "dropout": 0.2, "accumulate": 2}
    whole = settings(shards, tmp_path / "whole", **recipe)
    fit(whole)
    config = replace(whole, run=tmp_path / "run")
    fitted = fit(config, be_terminated)
    assert not fitted.finished
    checkpoint, _ = read_checkpoint(config.run / "last.pt")
    assert (checkpoint.epoch, checkpoint.step) == (1, 1), "it ended after the next step"
    assert fit(replace(config, resume=True)).finished
    assert same_tensors(config.run / "last.pt", whole.run / "last.pt")
    assert same_tensors(config.run / "best.pt", whole.run / "best.pt")
    assert timeless(config.run) == timeless(whole.run)


@pytest.mark.slow
def test_sigterm_ends_the_command_with_0_and_all_saved(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, tmp_path / "run", epochs=500)
    process = subprocess.Popen(
        [sys.executable, "-m", "training", "fit", *arguments(config)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "epoch   1/500" in process.stdout.readline()
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "--resume goes on from there" in errors
    checkpoint, _ = read_checkpoint(tmp_path / "run/last.pt")
    assert checkpoint.epoch >= 1


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_with_two(shards: Path, tmp_path: Path) -> None:
    recipe = {"trainable": "head", "batch_size": 15, "epochs": 3}
    whole = settings(shards, tmp_path / "whole", **recipe)
    fit(whole)
    config = replace(whole, run=tmp_path / "run")
    fit(config, be_terminated)
    result = torchrun(2, "bintally", "fit", *arguments(replace(config, resume=True)))
    assert result.returncode == 0, result.stderr
    assert "resuming after epoch 1, step 1" in result.stderr
    for a, b in zip(timeless(whole.run), timeless(config.run), strict=True):
        assert a["train"]["samples"] == b["train"]["samples"]
        assert a["train"]["loss"] == pytest.approx(b["train"]["loss"], abs=1e-3)
        assert a["validation"]["loss"] == pytest.approx(b["validation"]["loss"], abs=1e-3)


def workers(launcher: int) -> list[int]:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"training" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
    ]


LONG = {"batch_size": 4, "epochs": 3}
"""An epoch of 16 steps: time to be killed in."""


@pytest.fixture(scope="module")
def uninterrupted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The folder of a run of so many processes that nobody disturbed."""

    @cache
    def run(processes: int) -> Path:
        config = settings(shards, tmp_path_factory.mktemp("whole"), **LONG)
        result = torchrun(processes, "bintally", "fit", *arguments(config))
        assert result.returncode == 0, result.stderr
        return config.run

    return run


def start(processes: int, config: FitConfig, *options: str) -> subprocess.Popen[str]:
    """Starts a run that saves after every step, and returns when it is in mid-epoch."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += [f"--nproc-per-node={processes}", *options, "-m", "--", "training", "fit"]
    process = subprocess.Popen(
        [*launcher, *arguments(replace(config, checkpoint_every_minutes=1e-9))],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    last = config.run / "last.pt"
    while not (last.exists() and read_checkpoint(last)[0].step) and process.poll() is None:
        time.sleep(0.002)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_in_mid_epoch_resumes_to_identical_weights(
    processes: int, shards: Path, tmp_path: Path, uninterrupted: Callable[[int], Path]
) -> None:
    config = settings(shards, tmp_path, **LONG)
    process = start(processes, config)
    for pid in (process.pid, *workers(process.pid)):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    checkpoint, _ = read_checkpoint(config.run / "last.pt")
    assert 0 < checkpoint.step < 16, "it was killed in mid-epoch"
    result = torchrun(processes, "bintally", "fit", *arguments(replace(config, resume=True)))
    assert result.returncode == 0, result.stderr
    assert f"resuming after epoch {checkpoint.epoch}, step {checkpoint.step}" in result.stderr
    whole = uninterrupted(processes)
    assert same_tensors(config.run / "last.pt", whole / "last.pt")
    assert timeless(config.run) == timeless(whole)


@pytest.mark.slow
def test_a_killed_process_of_two_is_replaced_and_the_weights_are_identical(
    shards: Path, tmp_path: Path, uninterrupted: Callable[[int], Path]
) -> None:
    config = settings(shards, tmp_path, **LONG)
    process = start(2, config, "--max-restarts=1")
    os.kill(workers(process.pid)[-1], signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "resuming after epoch" in errors
    assert same_tensors(config.run / "last.pt", uninterrupted(2) / "last.pt")
    assert timeless(config.run) == timeless(uninterrupted(2))


def test_a_loss_gone_astray_names_step_batch_and_the_last_good_checkpoint(
    shards: Path, tmp_path: Path
) -> None:
    config = settings(
        shards, tmp_path, trainable="head", optimizer="sgd", lr=1e6, warmup_epochs=1.25, epochs=9
    )
    with pytest.raises(WorkError) as caught:
        fit(replace(config, lr=3e38))
    assert "epoch 1, step 2: the loss is" in str(caught.value)
    assert "there is no checkpoint yet" in str(caught.value)
    assert "and 4 more" in str(caught.value)


def test_what_went_astray_is_never_saved(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, tmp_path, trainable="head", checkpoint_every_minutes=1e-9)
    fit(config, be_terminated)
    checkpoint, _ = read_checkpoint(tmp_path / "last.pt")
    checkpoint.model["head.2.weight"][0, 0] = float("nan")
    (tmp_path / "last.pt").write_bytes(checkpoint_bytes(checkpoint))
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(WorkError, match=r"epoch 2, step 2: the loss is nan; the batch was \d+, "):
        fit(replace(config, resume=True))
    assert (tmp_path / "last.pt").read_bytes() == before


@pytest.mark.slow
def test_two_processes_stop_together_when_the_loss_goes_astray(
    shards: Path, tmp_path: Path
) -> None:
    """In an epoch's last step, too: what it names is that step and its photos."""
    config = settings(shards, tmp_path, trainable="head", lr=3e38, batch_size=32)
    result = torchrun(2, "bintally", "fit", *arguments(config))
    assert result.returncode != 0
    assert "epoch 1, step 2: the loss is" in result.stderr
    assert "Traceback (most recent call last):\n  File" not in result.stderr.split("error: ")[0]


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 36.0])
def test_a_loss_is_astray_that_is_no_number_or_absurdly_high(loss: float) -> None:
    survival = Survival(ALONE, threading.Event(), 6, 0)
    assert not survival.after_step(Step(0, torch.tensor(5.0), 1))
    with pytest.raises(Diverged) as caught:
        survival.after_step(Step(1, torch.tensor(loss), 1))
    assert caught.value.number == 1


def test_a_checkpoint_is_due_when_its_time_has_passed() -> None:
    seldom, often = (Survival(ALONE, threading.Event(), 6, minutes) for minutes in (60, 1e-9))
    assert not seldom.after_step(Step(0, torch.tensor(1.0), 1))
    assert often.after_step(Step(0, torch.tensor(1.0), 1))


def test_a_request_to_end_is_heeded_between_steps_and_in_evaluations() -> None:
    requested = threading.Event()
    survival = Survival(ALONE, requested, 6, 0)
    survival.pause()
    requested.set()
    with pytest.raises(Terminated):
        survival.pause()


@pytest.mark.slow
def test_a_lost_machine_costs_nothing_that_the_mirror_has(
    shards: Path, tmp_path: Path, s3: str
) -> None:
    whole = settings(shards, tmp_path / "whole", trainable="head")
    fit(whole)
    config = replace(whole, run=tmp_path / "run", mirror=f"{s3}/runs/1")
    fit(config, be_terminated)
    shutil.rmtree(config.run)
    fit(replace(config, resume=True))
    assert same_tensors(config.run / "last.pt", whole.run / "last.pt")
    assert timeless(config.run) == timeless(whole.run)
    mirrored = {entry.path for entry in open_place(str(config.mirror)).entries()}
    assert mirrored == {path.name for path in config.run.iterdir() if path.is_file()}


class SlowFolder(Folder):
    """Writes when it is told to, and remembers the order."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.go = threading.Event()
        self.began = threading.Event()
        self.order: list[str] = []

    def put(self, path: str, *pieces: bytes) -> None:
        self.began.set()
        self.go.wait(60)
        super().put(path, *pieces)
        self.order.append(path)


def a_checkpoint(value: float) -> Checkpoint:
    nothing: dict[str, Any] = {}
    return Checkpoint(
        {"w": torch.tensor([value])}, nothing, nothing, None, None, {}, 1, 0, {}, {}, {}, "", [], {}
    )


def test_writing_keeps_nobody_waiting_and_the_newest_wins(tmp_path: Path) -> None:
    folder = SlowFolder(tmp_path)
    writer = CheckpointWriter(folder, None)
    first = a_checkpoint(1)
    writer.submit({"last.pt": first})
    first.model["w"][0] = 99
    assert folder.began.wait(60)
    writer.submit({"best.pt": a_checkpoint(2), "last.pt": a_checkpoint(2)})
    writer.submit({"last.pt": a_checkpoint(3)})
    folder.go.set()
    writer.flush()
    assert folder.order == ["last.pt", "best.pt", "last.pt"]
    kept = {
        name: parse_checkpoint((tmp_path / name).read_bytes(), tmp_path / name).model["w"].item()
        for name in ("best.pt", "last.pt")
    }
    assert kept == {"best.pt": 2, "last.pt": 3}


class BrokenPlace(Folder):
    def put(self, path: str, *pieces: bytes) -> None:
        raise WorkError(f"{self.url}/{path}: cannot be written: disk full")


def test_a_full_disk_ends_the_run_and_a_lost_mirror_does_not(tmp_path: Path) -> None:
    broken: Place = BrokenPlace(tmp_path / "broken")
    writer = CheckpointWriter(broken, None)
    writer.submit({"last.pt": a_checkpoint(1)})
    with pytest.raises(WorkError, match="disk full"):
        writer.flush()
    mirrored = CheckpointWriter(Folder(tmp_path), broken)
    mirrored.submit({"last.pt": a_checkpoint(1)})
    mirrored.flush()
    assert (tmp_path / "last.pt").exists()
