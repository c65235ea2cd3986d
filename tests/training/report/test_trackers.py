"""Trackers: every step once in what the tool wrote, whatever became of the run meanwhile.

Those that are not installed here are skipped: TensorBoard is a tool of development, the others need
`pip install 'bintally[wandb,mlflow]'`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest

from bintally.errors import UsageError, WorkError
from tests.conftest import REPOSITORY
from tests.training.runs import arguments, settings
from tests.training.survival.test_survival import be_terminated
from training.config import TRACKERS
from training.fit import fit
from training.report import trackers
from training.report.history import read_history
from training.report.trackers import check_installed

Curves = dict[str, list[tuple[int, float]]]
"""By name: steps, in the order in which the tool has them, and values."""


def of_tensorboard(run: Path) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def of_wandb(run: Path) -> Curves:
    """Of the newest files, by which `wandb sync` replaces what older ones have made."""
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1, "one id at every start"
    curves: Curves = {}
    for data in leveldb_log(files[-1].read_bytes()):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            values = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            for name, value in values.items():
                curves.setdefault(name, []).append((values["_step"], value))
    return curves


def leveldb_log(data: bytes) -> Iterator[bytes]:
    """The records of a file behind its header of 7 bytes: each in parts with checksum, length and
    kind (1 whole, 2 first, 3 middle, 4 last) before them, none across a block of 32 KiB."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def of_mlflow(run: Path) -> Curves:
    from mlflow import MlflowClient

    client = MlflowClient()
    (experiment,) = (e for e in client.search_experiments() if e.name == "bintally")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["batch_size"] == "16"
    return {
        name: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)]
        for name in found.data.metrics
    }


READ: Mapping[str, Callable[[Path], Curves]] = {
    "tensorboard": of_tensorboard,
    "wandb": of_wandb,
    "mlflow": of_mlflow,
}


@pytest.fixture(params=TRACKERS)
def tool(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tracker that is installed here, by name, without a server."""
    name: str = request.param
    pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    return name


def assert_complete(tool: str, run: Path) -> None:
    """The tool has every number of the run's history, every step once."""
    curves, history = READ[tool](run), read_history(run / "metrics.jsonl")
    for name, *keys in (
        ("train/loss", "train", "loss"),
        ("validation/accuracy", "validation", "accuracy"),
        ("validation/argmax/rmse", "validation", "argmax", "rmse"),
        ("lr", "lr"),
        ("epoch", "epoch"),
    ):
        assert [step for step, _ in curves[name]] == [line["step"] for line in history], name
        values = [reduce(getitem, keys, line) for line in history]
        assert [value for _, value in curves[name]] == pytest.approx(values)


def test_a_run_that_goes_back_to_its_checkpoint_leaves_every_step_once(
    tool: str, shards: Path, tmp_path: Path
) -> None:
    """Killed between what a tracker was told and the checkpoint, it says some things again."""
    config = settings(shards, tmp_path / "run", trainable="head", epochs=3, track=tool)

    def keep(line: dict[str, Any]) -> None:
        if line["epoch"] == 1:
            shutil.copy(config.run / "last.pt", tmp_path)

    fit(config, keep)
    assert_complete(tool, config.run)
    shutil.copy(tmp_path / "last.pt", config.run)
    assert fit(replace(config, resume=True)).history[1]["resumed"]
    assert_complete(tool, config.run)


def test_a_tracker_that_comes_later_gets_what_was_before(
    tool: str, shards: Path, tmp_path: Path
) -> None:
    config = settings(shards, tmp_path / "run", trainable="head")
    fit(config, be_terminated)
    fit(replace(config, resume=True, track=tool))
    assert_complete(tool, config.run)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_killed_again_and_again_leaves_every_step_once(
    tool: str, shards: Path, tmp_path: Path
) -> None:
    config = settings(shards, tmp_path / "run", epochs=4, checkpoint_every_minutes=1e-9)
    command = [sys.executable, "-m", "training", "fit", *arguments(config), "--track", tool]
    for epoch in (1, 3):
        process = subprocess.Popen(
            [*command, *(["--resume"] if epoch > 1 else [])],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        while f"epoch {epoch}/4" not in process.stdout.readline():
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    subprocess.run([*command, "--resume"], cwd=REPOSITORY, check=True)
    assert len(read_history(config.run / "metrics.jsonl")) == 4
    assert_complete(tool, config.run)


def test_a_run_that_is_restarted_is_another_one_to_trackers(shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    config = settings(shards, tmp_path, trainable="head", epochs=1, track="tensorboard")
    ids = []
    for restart in (False, True):
        fit(replace(config, restart=restart))
        ids.append((tmp_path / "tracking.json").read_bytes())
    assert ids[0] != ids[1]
    assert_complete("tensorboard", tmp_path)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_one_line_before_anything_else(
    name: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        UsageError, match=rf"^--track {name}: .*: pip install 'bintally\[{name}\]'$"
    ):
        fit(settings(shards, tmp_path / "run", track=f"{name}, {name}"))
    assert not (tmp_path / "run").exists()


def test_a_folder_called_as_a_tracker_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tracker_of_nobody").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="is not installed here"):
        check_installed(["tracker_of_nobody"])


def test_another_tracker_is_a_usage_error(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--track neptune: must be one of tensorboard, wandb, mlf"):
        fit(settings(shards, tmp_path, track="tensorboard,neptune"))


class Away:
    """A tracker whose server cannot be reached."""

    last_step = -1

    def __init__(self, *_: object) -> None:
        pass

    def log(self, step: int, values: Mapping[str, float]) -> None:
        raise ConnectionError("no route\nto the host")

    def close(self, *, failed: bool) -> None:
        pass


def test_a_tracker_that_is_away_ends_no_training_and_is_told_at_the_end(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setitem(trackers.TOOLS, "tensorboard", Away)
    config = settings(shards, tmp_path, trainable="head", track="tensorboard")
    with pytest.raises(WorkError, match=r"--track tensorboard lacks it: no route$"):
        fit(config)
    assert (tmp_path / "report.html").exists()
    assert capfd.readouterr().err.count("training goes on") == 1
