"""Training end to end: exact, interruptible, the same on any number of processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bintally.counting.checkpoint import read_checkpoint
from bintally.dataset.manifest import SPLITS
from bintally.errors import UsageError
from bintally.storage.opening import open_place
from sharding.planning.options import Options
from tests.conftest import REPOSITORY, Command, copy
from tests.sharding.builds import make
from tests.training.runs import arguments, same_tensors, settings, torchrun
from training.config import FitConfig
from training.fit import fit
from training.inference.measure import measure


def test_a_run_leaves_checkpoints_metrics_and_report(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "best.pt",
        "last.pt",
        "metrics.jsonl",
        "evaluation.json",
        "report.html",
        "rules.json",
    }
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[0]["train"]["samples"] == 64  # four whole batches of the 67 samples
    assert "<html" in (finished / "report.html").read_text()


def test_the_best_checkpoint_is_the_one_of_the_best_epoch(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: (line["validation"]["accuracy"], -line["epoch"]))
    checkpoint, sha256 = read_checkpoint(finished / "best.pt")
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert checkpoint.epoch == best["epoch"]
    assert evaluation["checkpoint"] == {"epoch": best["epoch"], "sha256": sha256}
    assert evaluation["accuracy"] == best["validation"]["accuracy"]
    assert evaluation["split"] == "validation"


def test_a_checkpoint_holds_what_the_design_says_and_nothing_that_runs(finished: Path) -> None:
    value = torch.load(finished / "last.pt", weights_only=True)
    assert {"model", "optimizer", "schedule", "ema", "scaler", "random"} <= value.keys()
    assert {"epoch", "step", "config", "dataset", "classes", "preprocessing"} <= value.keys()
    assert value["decision"].keys() == {"rule", "temperature"}
    assert value["classes"] == [0, 1, 2, 3, 4, 5]
    assert "shards" not in value["config"], "no path of the machine"


def test_the_best_checkpoint_holds_what_counts_photos_and_no_more(finished: Path) -> None:
    best = torch.load(finished / "best.pt", weights_only=True)
    needed = ("model", "epoch", "config", "dataset", "classes", "preprocessing", "decision")
    assert all(best[name] for name in needed)
    for name in ("optimizer", "schedule", "ema", "scaler", "random", "sums"):
        assert not best[name]
    whole = (finished / "last.pt").stat().st_size
    assert (finished / "best.pt").stat().st_size < whole / 2


def test_the_same_seed_gives_the_same_weights(finished: Path, shards: Path, tmp_path: Path) -> None:
    fit(settings(shards, tmp_path))
    assert same_tensors(tmp_path / "last.pt", finished / "last.pt")


def test_a_finished_run_is_kept_and_resuming_it_changes_nothing(
    finished: Path, shards: Path
) -> None:
    before = (finished / "last.pt").read_bytes()
    with pytest.raises(UsageError, match="holds a finished run"):
        fit(settings(shards, finished))
    fit(settings(shards, finished, resume=True))
    assert (finished / "last.pt").read_bytes() == before


def test_a_run_that_is_restarted_begins_anew(finished: Path, shards: Path, tmp_path: Path) -> None:
    fit(settings(shards, tmp_path, epochs=1))
    fit(settings(shards, tmp_path, restart=True))
    assert same_tensors(tmp_path / "last.pt", finished / "last.pt")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]


def test_resuming_with_other_settings_or_data_is_a_usage_error(
    finished: Path, shards: Path
) -> None:
    with pytest.raises(UsageError, match=r"--lr 0\.001 became 0\.1"):
        fit(settings(shards, finished, resume=True, lr=0.1))
    with pytest.raises(UsageError, match="--augment flip became light"):
        fit(settings(shards, finished, resume=True, augment="light"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 10_000}, "the train split has only 67 samples"),
        ({"batch_size": 0}, "--batch-size 0: must be at least 1"),
        ({"lr": 0.0}, r"--lr 0\.0: must be above 0"),
        ({"device": "cuda"}, "sees no GPU"),
        ({"augment": "twirl"}, "--augment twirl: must be one of none, flip, light, imagenet"),
        ({"clip_grad_norm": -1.0}, r"--clip-grad-norm -1\.0: must be at least 0"),
    ],
)
def test_settings_that_do_not_fit_are_usage_errors(
    wrong: dict[str, Any], message: str, shards: Path, tmp_path: Path
) -> None:
    if "device" in wrong and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UsageError, match=message):
        fit(settings(shards, tmp_path, **wrong))
    assert list(tmp_path.iterdir()) == []


def evaluation(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return value


@pytest.mark.slow
@pytest.mark.parametrize("split", ["test"])
def test_any_number_of_processes_evaluates_to_the_same_sums(
    split: str, finished: Path, shards: Path, tmp_path: Path, run: Command
) -> None:
    command = ["training", "evaluate", "--checkpoint", finished / "best.pt", "--shards", shards]
    command += ["--split", split, "--batch-size", 7, "--precision", "fp32", "--output"]
    run(*command, tmp_path / "1", check=True)
    for processes in (2, 3):
        result = torchrun(processes, *command, tmp_path / str(processes))
        assert result.returncode == 0, result.stderr
        one, several = evaluation(tmp_path / "1"), evaluation(tmp_path / str(processes))
        assert several["samples"] % 7, "no batch size divides it"
        assert several["confusion_matrix"] == one["confusion_matrix"]
        assert several["loss"] == pytest.approx(one["loss"], abs=1e-6)


@pytest.mark.slow
def test_what_two_processes_validate_is_what_their_checkpoint_holds(
    shards: Path, tmp_path: Path
) -> None:
    """Each has seen other photos, and has BatchNorm statistics of its own, if nobody sees to it."""
    config = settings(shards, tmp_path / "run")
    result = torchrun(2, "bintally", "fit", *arguments(config), "--ema", "0.5", "--accumulate", "2")
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    lines = [json.loads(line) for line in (config.run / "metrics.jsonl").open()]
    checkpoint, _ = read_checkpoint(config.run / "best.pt")
    # The batches of a validation, which decide its last bit: 16 photos in 2 × 2 parts.
    measured, _ = measure(
        config.run / "best.pt",
        config.shards,
        "validation",
        tmp_path,
        batch_size=4,
        precision="fp32",
    )
    for found in (evaluation(config.run), measured):
        assert found is not None
        line = lines[checkpoint.epoch - 1]["validation"]
        assert line == {name: found[name] for name in line}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_compiled_model_learns_what_it_learns_else(
    processes: int, shards: Path, tmp_path: Path
) -> None:
    lines: list[list[dict[str, Any]]] = []
    for more in ((), ("--compile",)):
        config = settings(shards, tmp_path / f"run{len(lines)}")
        result = torchrun(processes, "bintally", "fit", *arguments(config), *more)
        assert result.returncode == 0, result.stderr
        lines.append([json.loads(line) for line in (config.run / "metrics.jsonl").open()])
    for plain, compiled in zip(*lines, strict=True):
        assert compiled["train"]["loss"] == pytest.approx(plain["train"]["loss"], abs=1e-3)
        assert compiled["validation"]["loss"] == pytest.approx(
            plain["validation"]["loss"], abs=1e-3
        )


@pytest.mark.slow
def test_two_processes_train_on_the_batches_of_one(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a frozen backbone the gradients are the same sums, so the losses follow each other."""
    lines, batches = [], []
    for world in (1, 2):
        folder = tmp_path / str(world)
        folder.mkdir()
        monkeypatch.setenv("RECORDING", str(folder))
        config = settings(shards, folder / "run", trainable="head", batch_size=15, epochs=3)
        command = ["tests.training.recording", "fit", *arguments(config)]
        result = torchrun(world, *command)
        assert result.returncode == 0, result.stderr
        lines.append([json.loads(x) for x in (config.run / "metrics.jsonl").open()])
        ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]
        batches.append(
            [
                (parts[0][0], [i for _, part in parts for i in part])
                for parts in zip(*ranks, strict=True)
            ]
        )
    assert batches[0] == batches[1]
    assert [epoch for epoch, _ in batches[0]] == [0] * 4 + [1] * 4 + [2] * 4
    for one, two in zip(*lines, strict=True):
        assert one["train"]["samples"] == two["train"]["samples"] == 60
        for split in ("train", "validation"):
            assert one[split]["loss"] == pytest.approx(two[split]["loss"], abs=1e-3)


def test_a_checkpoint_for_other_counts_is_refused(
    finished: Path, bucket: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    make(bucket, other, Options(max_count=7))
    with pytest.raises(UsageError, match="not made for each other"):
        measure(
            finished / "best.pt",
            str(other),
            "test",
            None,
            precision="fp32",
            engine_name="cpu",
            device="cpu",
        )
    with pytest.raises(UsageError, match="another dataset"):
        fit(settings(other, finished, resume=True))


def test_a_damaged_dataset_is_one_clear_error(shards: Path, tmp_path: Path, run: Command) -> None:
    import shutil

    shutil.copytree(shards, tmp_path / "dataset")
    for split in SPLITS:
        tar = min((tmp_path / "dataset" / split).glob("*.tar"))
        tar.write_bytes(tar.read_bytes()[:-10_240])
    result = run("training", "fit", "--shards", tmp_path / "dataset", "--run", tmp_path / "run")
    assert result.returncode == 1
    assert "train/train-000000.tar" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_training_from_s3_repeats_itself_and_evaluates_as_from_a_folder(
    shards: Path, s3: str, tmp_path: Path
) -> None:
    copy(open_place(shards), open_place(f"{s3}/shards"))
    url, cache = f"{s3}/shards", tmp_path / "cache"

    def from_s3(run: str, **more: Any) -> FitConfig:
        return replace(settings(shards, tmp_path / run, **more), shards=url, cache=cache)

    fit(from_s3("whole"))
    fit(from_s3("again"))
    assert same_tensors(tmp_path / "whole/last.pt", tmp_path / "again/last.pt")
    command = ["training", "evaluate", "--checkpoint", tmp_path / "whole/best.pt"]
    found = []
    for name, place in (
        ("s3", ["--shards", url, "--cache", cache]),
        ("here", ["--shards", shards]),
    ):
        words = [*command, *place, "--output", tmp_path / name]
        subprocess.run([sys.executable, "-m", *map(str, words)], cwd=REPOSITORY, check=True)
        found.append(evaluation(tmp_path / name)["confusion_matrix"])
    assert found[0] == found[1]


def test_a_bad_photo_is_replaced_and_counted_where_that_is_asked_for(
    shards: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "dataset"
    shutil.copytree(shards, damaged)
    tar = damaged / "train/train-000000.tar"
    data = tar.read_bytes()
    scan = data.index(b"\xff\xda")  # Of the first photo.
    tar.write_bytes(data[: scan + 20] + bytes(2000) + data[scan + 2020 :])
    # Batches of one leave nothing of the epoch out.
    more = {"on_bad_sample": "skip", "epochs": 1, "batch_size": 1}
    fit(settings(damaged, tmp_path / "run", **more))
    (line,) = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["replaced_samples"] == 1
