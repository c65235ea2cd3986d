"""A search's trainings are those of `fit`, whatever is searched, pruned and gone on with."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bintally.counting.checkpoint import read_checkpoint
from tests.conftest import Command
from tests.tuning.searches import command, killed, timeless, told
from tests.tuning.searches import run as call
from tuning.results import read_repeats, read_trials


@pytest.mark.slow
def test_whoever_waits_at_a_rung_goes_on_as_if_nothing_had_been(
    shards: Path, space: Path, tmp_path: Path
) -> None:
    """The same trials, as long as they go, as in a search that lets all go on; killed and resumed
    too, and with everything trained in two processes a trial."""
    for trainable, more in (("head", ()), ("all", ("--workers-per-trial", 2))):
        whole, halved = tmp_path / f"{trainable}-whole", tmp_path / f"{trainable}-halved"
        own = ("--trials", 4, "--repeats", 0, "--trainable", trainable, "--algorithm", "random")
        result = call(command(shards, whole, space, *own, *more), OMP_NUM_THREADS="1")
        assert result.returncode == 0, result.stderr
        words = command(shards, halved, space, *own, *more, "--scheduler", "halving")
        result = call(words, OMP_NUM_THREADS="1")
        assert result.returncode == 0, result.stderr
        statuses = []
        for trial, other in zip(read_trials(halved), read_trials(whole), strict=True):
            assert trial.parameters == other.parameters
            statuses.append(trial.status)
            lines = [
                [(line["epoch"], line["train"], line["validation"]) for line in one.history]
                for one in (trial, other)
            ]
            assert lines[0] == lines[1][: len(lines[0])]
        assert sorted(statuses) == ["finished", "stopped", "stopped", "stopped"]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As a trial has: with more of them, sums are rounded otherwise."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


GRID = """
image_size = [48, 64]
augment = ["none", "flip", "light"]
lr = 0.01
epochs = 2
batch_size = 16
head_width = 16
"""


@pytest.mark.slow
def test_a_grid_over_what_a_frozen_backbone_sees_is_what_fit_trains(
    shards: Path, tmp_path: Path, one_thread: None
) -> None:
    """Bit for bit: each point has features of its own, or sees photos anew in every epoch."""
    import torch

    from bintally.counting.model import build_model
    from training.config import FitConfig
    from training.fit import fit

    model, _ = build_model(
        "timm:test_resnet", "none", image_size=64, head_width=8, num_classes=6, trainable="all"
    )
    torch.save(model.backbone.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "space.toml").write_text(GRID)
    words = command(shards, tmp_path / "out", tmp_path / "space.toml", "--algorithm", "grid")
    words += ["--weights", str(tmp_path / "weights.pt"), "--repeats", "1"]
    result = call(words)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("features of all photos once") == 2
    trials = [*read_trials(tmp_path / "out"), *read_repeats(tmp_path / "out")]
    assert len(trials) == 6 + 3
    seen = set()
    for trial in trials:
        run_folder = tmp_path / f"fit-{trial.number}-{trial.repeat}"
        fitted = fit(
            FitConfig(
                str(shards),
                run_folder,
                backbone="timm:test_resnet",
                weights=str(tmp_path / "weights.pt"),
                trainable="head",
                optimizer="adam",
                weight_decay=0.0,
                head_width=16,
                lr=0.01,
                epochs=2,
                batch_size=16,
                image_size=trial.parameters["image_size"],
                augment=trial.parameters["augment"],
                seed=trial.repeat,
                device="cpu",
            )
        )
        lines = [
            [(line["epoch"], line["train"], line["validation"]) for line in history]
            for history in (trial.history, fitted.history)
        ]
        assert lines[0] == lines[1]
        seen.add(json.dumps(lines[0]))
        if trial.number == told(tmp_path / "out")["best"]["number"] and not trial.repeat:
            (one, _), (two, _) = (
                read_checkpoint(folder / "best.pt")
                for folder in (run_folder, tmp_path / "out/winner")
            )
            assert all((one.model[name] == two.model[name]).all() for name in one.model)
    assert len(seen) == len(trials), "and they differ"


@pytest.mark.slow
def test_the_mirror_has_the_checkpoints_of_trials(
    shards: Path, space: Path, tmp_path: Path
) -> None:
    words = command(shards, tmp_path / "out", space, "--trials", 1, "--repeats", 0)
    result = call([*words, "--trainable", "all", "--mirror", str(tmp_path / "mirror")])
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "mirror/trials/0000/last.pt").exists()


@pytest.mark.slow
def test_twenty_trials_of_the_originals_space_on_real_photos(
    abid: Path, weights: Path, tmp_path: Path, run: Command
) -> None:
    """The same seed gives the same table, killed and resumed too, with rungs too; and these take at
    most two thirds of the epochs."""
    shards = tmp_path / "shards"
    run("sharding", "build", "--source", abid / "bucket224", "--output", shards, check=True)
    words = [sys.executable, "-m", "tuning", "search", "--shards", shards]
    words += ["--backbone", "timm:tf_efficientnet_lite0", "--weights", weights, "--trials", 20]
    epochs = {}
    for scheduler in ("none", "halving"):
        tables = []
        for name, kill_after in (("whole", 0), ("killed", 7)):
            output = tmp_path / f"{scheduler}-{name}"
            own = [*map(str, [*words, "--output", output, "--scheduler", scheduler])]
            if kill_after:
                killed(own, output, kill_after)
                own += ["--resume", "--concurrency", "1"]
            result = call(own)
            assert result.returncode == 0, result.stderr
            tables.append((timeless(output), told(output)["chosen"], told(output)["winner"]))
        assert tables[0] == tables[1]
        epochs[scheduler] = told(tmp_path / f"{scheduler}-whole")["epochs"]
    assert epochs["halving"] <= 2 / 3 * epochs["none"]
