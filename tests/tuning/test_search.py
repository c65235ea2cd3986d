"""Searches as a user runs them: on a Ray of this machine, on two nodes, interrupted, resumed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from bintally.counting.checkpoint import read_checkpoint
from bintally.errors import UsageError
from tests.conftest import REPOSITORY
from tests.ray_nodes import ray_cluster
from tests.tuning.searches import SMALL, command, killed, rows, run, timeless, told
from tuning.config import SearchConfig
from tuning.results import read_repeats, read_trials
from tuning.search import search

SIX = ("--trials", "6", "--repeats", "1")


@pytest.fixture(scope="module")
def searched(shards: Path, space: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of heads, to its end."""
    output = tmp_path_factory.mktemp("searched") / "search"
    result = run(command(shards, output, space, *SIX))
    assert result.returncode == 0, result.stderr
    assert "report:" in result.stdout
    assert re.search(
        r"best: trial \d, validation accuracy 0\.\d+ ± 0\.\d+ over 2 seeds", result.stdout
    )
    assert re.search(r"overhead: \d+\.\d+ s a trial beside its training", result.stdout)
    return output


def test_a_search_ends_with_a_winner_that_is_a_run_like_any_other(searched: Path) -> None:
    best = told(searched)
    trials = read_trials(searched)
    assert [trial.number for trial in trials] == [0, 1, 2, 3, 4, 5]
    assert {trial.status for trial in trials} == {"finished"}
    for trial in trials:
        assert len(trial.history) == trial.parameters["epochs"], "every epoch is told"
    finalists = best["chosen"]["finalists"]
    ranked = sorted(trials, key=lambda trial: (-(trial.value or 0.0), trial.number))
    assert sorted(one["number"] for one in finalists) == sorted(t.number for t in ranked[:3])
    repeats = {trial.number: trial for trial in read_repeats(searched)}
    for one in finalists:
        assert one["values"] == [trials[one["number"]].value, repeats[one["number"]].value]
    assert finalists[0]["mean"] == max(one["mean"] for one in finalists)
    assert [(row["trial"], row["repeat"]) for row in rows(searched) if row["repeat"] != "0"] == [
        (str(number), "1") for number in sorted(repeats)
    ]
    top = trials[finalists[0]["number"]]
    assert best["best"]["number"] == top.number
    winner = searched / "winner"
    checkpoint, _ = read_checkpoint(winner / "best.pt")
    assert {name: checkpoint.config[name] for name in top.parameters} == top.parameters
    assert checkpoint.config["head_width"] == 16, "what the space fixes"
    assert checkpoint.best == top.best, "what was found is what was trained"
    assert len((winner / "metrics.jsonl").read_text().splitlines()) == top.parameters["epochs"]
    test = json.loads((winner / "test/evaluation.json").read_text())
    assert test["split"] == "test"
    assert best["winner"]["test"] == test
    for file in ("report.html", "winner/report.html", "winner/test/report.html", "results.csv"):
        assert (searched / file).stat().st_size > 0
    assert list((searched / "tensorboard/0000").glob("events.out.tfevents.*"))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trials_and_winner(
    searched: Path, shards: Path, space: Path, tmp_path: Path
) -> None:
    """One at a time, and a search that was killed, and resumed, is one that was not."""
    words = command(shards, tmp_path, space, *SIX, "--concurrency", 1)
    killed(words, tmp_path, 2)
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "trials").glob("*.json")}
    assert len(before) >= 2
    refused = run(words)
    assert refused.returncode == 2
    assert "--resume goes on with it" in refused.stderr
    other = run([*words, "--resume", "--seed", "1"])
    assert other.returncode == 2
    assert "was searched with seed 0, not 1" in other.stderr
    result = run([*words, "--resume"])
    assert result.returncode == 0, result.stderr
    assert timeless(tmp_path) == timeless(searched)
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "trials").glob("*.json")}
    assert after.items() >= before.items(), "what was over is not trained again"
    (one, _), (two, _) = (read_checkpoint(d / "winner/best.pt") for d in (tmp_path, searched))
    assert one.model.keys() == two.model.keys()
    assert all((one.model[name] == two.model[name]).all() for name in one.model)


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["all", "head"])
def test_a_trial_that_does_not_fit_into_memory_is_marked_and_not_tried_again(
    shards: Path, tmp_path: Path, trainable: str
) -> None:
    (tmp_path / "space.toml").write_text(
        "head_width = [16, 1_000_000_000_000]\nepochs = 2\nbatch_size = 16\n"
    )
    words = command(shards, tmp_path / "out", tmp_path / "space.toml", "--trainable", trainable)
    result = run([*words, "--algorithm", "grid"])
    assert result.returncode == 0, result.stderr
    assert [row["status"] for row in rows(tmp_path / "out")] == ["finished", "out-of-memory"]


@pytest.mark.slow
def test_a_finished_search_goes_on_with_more_trials(
    shards: Path, space: Path, tmp_path: Path
) -> None:
    """On another number at a time too; a better trial is the winner then, and an old one is not."""
    result = run(command(shards, tmp_path, space, "--trials", 2, "--repeats", 0))
    assert result.returncode == 0, result.stderr
    first = timeless(tmp_path)
    winner = told(tmp_path)["best"]["number"]
    # Whatever the next trials come to, the first ones are not the best any more.
    for file in (tmp_path / "trials").glob("*.json"):
        trial = json.loads(file.read_text())
        file.write_text(json.dumps(trial | {"value": 0.0}))
    words = command(shards, tmp_path, space, "--trials", 5, "--repeats", 0, "--resume")
    result = run([*words, "--concurrency", "1"])
    assert result.returncode == 0, result.stderr
    assert [row["lr"] for row in timeless(tmp_path)[:2]] == [row["lr"] for row in first]
    best = told(tmp_path)["best"]
    assert best["number"] != winner
    checkpoint, _ = read_checkpoint(tmp_path / "winner/best.pt")
    assert {name: checkpoint.config[name] for name in best["parameters"]} == best["parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["all", "head"])
def test_a_trial_that_comes_to_nothing_is_marked_and_the_search_goes_on(
    shards: Path, tmp_path: Path, trainable: str
) -> None:
    """Also where everything is trained; and those that fall behind wait, and are ended."""
    (tmp_path / "space.toml").write_text(
        'lr = [0.01, 1e30, 0.001]\noptimizer = "sgd"\nepochs = 3\nbatch_size = 16\n'
    )
    words = command(shards, tmp_path / "out", tmp_path / "space.toml", "--trainable", trainable)
    words += ["--algorithm", "grid", "--metric", "rmse", "--scheduler", "halving"]
    result = run([*words, "--repeats", "0"])
    assert result.returncode == 0, result.stderr
    best = told(tmp_path / "out")
    assert best["ended"] == "every combination was tried"
    trials = read_trials(tmp_path / "out")
    assert trials[1].status == "diverged"
    first, other = sorted((0, 2), key=lambda n: trials[n].history[0]["validation"]["rmse"])
    assert (trials[first].status, len(trials[first].history)) == ("finished", 3)
    assert (trials[other].status, len(trials[other].history)) == ("stopped", 1)
    assert best["best"]["number"] == first
    if trainable == "all":
        found = tmp_path / f"out/trials/{best['best']['number']:04d}"
        (one, _), (two, _) = (
            read_checkpoint(d / "best.pt") for d in (found, tmp_path / "out/winner")
        )
        assert all((one.model[name] == two.model[name]).all() for name in one.model)


@pytest.mark.slow
def test_a_search_whose_shards_fail_ends_and_goes_on_as_if_they_had_not(
    shards: Path, space: Path, searched_wholly: Path, tmp_path: Path
) -> None:
    """The trial is not remembered as one that came to nothing."""
    dataset = tmp_path / "dataset"
    shutil.copytree(shards, dataset)
    shard = next(dataset.glob("train/*.tar"))
    whole = shard.read_bytes()
    at = whole.index(b"\xff\xda") + 200
    shard.write_bytes(whole[:at] + bytes(4_000) + whole[at + 4_000 :])
    words = command(dataset, tmp_path / "out", space, "--trials", 3, "--trainable", "all")
    result = run(words)
    assert result.returncode == 1, result.stderr
    error = result.stderr.splitlines()[-1]
    assert re.search(r"out: trial \d: train/.*: .*; when that is mended, .* --resume", error), error
    assert not read_trials(tmp_path / "out")
    shard.write_bytes(whole)
    result = run([*words, "--resume"])
    assert result.returncode == 0, result.stderr
    assert timeless(tmp_path / "out") == timeless(searched_wholly)


@pytest.fixture(scope="module")
def searched_wholly(shards: Path, space: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that trains everything, to its end."""
    output = tmp_path_factory.mktemp("searched-wholly") / "search"
    result = run(command(shards, output, space, "--trials", 3, "--trainable", "all"))
    assert result.returncode == 0, result.stderr
    return output


@pytest.mark.slow
def test_a_search_ends_when_its_time_is_up(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text("lr = [0.001, 0.01]\nepochs = 100000\nbatch_size = 16\n")
    words = command(shards, tmp_path / "out", tmp_path / "space.toml", "--minutes", 0.5)
    process = subprocess.Popen(
        [*words, "--trials", "3"],
        cwd=REPOSITORY,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        stderr=subprocess.PIPE,
        text=True,
    )
    # The winner would be trained as it was found, all of its epochs, which takes hours here.
    while len(list((tmp_path / "out/trials").glob("*.json"))) < 2 and process.poll() is None:
        time.sleep(0.2)
    process.kill()
    process.communicate()
    trials = read_trials(tmp_path / "out")
    assert {(trial.status, trial.reason) for trial in trials} == {("stopped", "the time was up")}
    assert all(trial.value is not None for trial in trials)


@pytest.mark.slow
def test_a_lost_node_costs_a_search_nothing(
    shards: Path, space: Path, tmp_path: Path, searched: Path
) -> None:
    """Two nodes of a core; the second is killed in mid-search. The table is that of one machine."""
    with ray_cluster(2) as cluster:
        words = command(shards, tmp_path, space, "--trials", 6, "--ray", cluster.address)
        process = subprocess.Popen(
            [*words, "--concurrency", "2"],
            cwd=REPOSITORY,
            env=dict(cluster.environment),
            stderr=subprocess.PIPE,
            text=True,
        )
        folder = tmp_path / "trials"
        while len(list(folder.glob("*.json"))) < 3 and process.poll() is None:
            time.sleep(0.05)
        nodes = {trial.node for trial in read_trials(tmp_path)}
        assert len(nodes) == 2, "trials run on both"
        cluster.nodes[1].kill()
        _, errors = process.communicate(timeout=250)
        assert process.returncode == 0, errors
    assert timeless(tmp_path) == timeless(searched)


@pytest.mark.slow
def test_a_trial_of_two_workers_is_what_torchrun_trains_with_two(
    shards: Path, tmp_path: Path
) -> None:
    from tests.training.runs import torchrun

    (tmp_path / "space.toml").write_text(
        "lr = [0.01]\nepochs = 2\nbatch_size = 16\nhead_width = 16\n"
    )
    words = command(shards, tmp_path / "out", tmp_path / "space.toml", "--trainable", "all")
    result = run([*words, "--workers-per-trial", "2", "--trials", "1"], OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    fit = ["--shards", shards, "--run", tmp_path / "run", "--preset", "capstone", *SMALL]
    fit += ["--trainable", "all", "--lr", 0.01, "--epochs", 2, "--batch-size", 16]
    again = torchrun(2, "bintally", "fit", *map(str, fit), "--head-width", "16", "--device", "cpu")
    assert again.returncode == 0, again.stderr
    (one, _), (two, _) = (
        read_checkpoint(d / "last.pt") for d in (tmp_path / "out/trials/0000", tmp_path / "run")
    )
    assert all((one.model[name] == two.model[name]).all() for name in one.model)
    (trial,) = read_trials(tmp_path / "out")
    assert [line["epoch"] for line in trial.history] == [1, 2]


def test_a_search_of_another_version_is_not_gone_on_with(shards: Path, tmp_path: Path) -> None:
    config = SearchConfig(str(shards), tmp_path, resume=True, backbone="timm:test_resnet")
    (tmp_path / "search.json").write_text('{"metric": "accuracy", "scheduler": "asha"}')
    with pytest.raises(
        UsageError, match=r"another version.*--warm-start .* to learn from it"
    ) as told:
        search(config)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"trials": 0}, "--trials 0: must be at least 1"),
        ({"repeats": -1}, "--repeats -1: must be at least 0"),
        ({"workers_per_trial": 2}, "--workers-per-trial 2: a head needs one process only"),
        ({"preset": "best"}, "--preset best: must be one of"),
        (
            {"algorithm": "grid", "warm_start": (Path("a"),)},
            "--warm-start: only --algorithm optuna",
        ),
    ],
)
def test_a_mistake_is_told_before_anything_is_started(
    shards: Path, tmp_path: Path, settings: dict[str, Any], told: str
) -> None:
    config = SearchConfig(str(shards), tmp_path, backbone="timm:test_resnet", **settings)
    with pytest.raises(UsageError, match=told):
        search(config)
    assert not list(tmp_path.iterdir())
