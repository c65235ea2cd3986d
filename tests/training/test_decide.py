"""`fit --decide`: what a run answers with, where that comes from, and what it leaves as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bintally.counting.checkpoint import read_checkpoint
from bintally.errors import UsageError
from tests.training.inference.test_measure import build_split
from tests.training.runs import same_tensors, settings
from training.__main__ import Evaluate
from training.config import DecideName
from training.fit import fit

HEAD: dict[str, Any] = {"trainable": "head", "lr": 0.02, "epochs": 4}


def validations(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["validation"] for line in (run / "metrics.jsonl").open()]


@pytest.fixture(scope="module")
def by_rmse(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("by-rmse")
    fit(settings(shards, run, best_metric="rmse", **HEAD))
    return run


def test_the_rule_is_the_one_that_is_best_by_the_runs_metric(by_rmse: Path) -> None:
    lines = validations(by_rmse)
    for line in lines:
        assert line["rmse"] <= line["argmax"]["rmse"]
        assert 0 <= line["ece"] <= 1
    assert any(line["decision"]["rule"] != "argmax" for line in lines)
    best = min(range(len(lines)), key=lambda i: (lines[i]["rmse"], i))
    checkpoint, _ = read_checkpoint(by_rmse / "best.pt")
    assert checkpoint.epoch == best + 1
    assert checkpoint.decision == lines[best]["decision"]
    evaluation = json.loads((by_rmse / "evaluation.json").read_text())
    assert lines[best] == {name: evaluation[name] for name in lines[best]}
    last, _ = read_checkpoint(by_rmse / "last.pt")
    assert last.decision == lines[-1]["decision"]


def test_what_is_answered_changes_nothing_of_the_training(
    by_rmse: Path, shards: Path, tmp_path: Path
) -> None:
    fit(settings(shards, tmp_path, decide="argmax", best_metric="rmse", **HEAD))
    assert same_tensors(tmp_path / "last.pt", by_rmse / "last.pt")
    for plain, decided in zip(validations(tmp_path), validations(by_rmse), strict=True):
        assert plain["decision"]["rule"] == "argmax"
        assert {name: plain[name] for name in plain["argmax"]} == plain["argmax"]
        assert plain["argmax"] == decided["argmax"]
        assert plain["loss"] == decided["loss"]


@pytest.mark.parametrize("rule", ["mean", "median"])
def test_a_rule_that_is_asked_for_is_kept(rule: DecideName, shards: Path, tmp_path: Path) -> None:
    fit(settings(shards, tmp_path, decide=rule, **HEAD))
    assert {line["decision"]["rule"] for line in validations(tmp_path)} == {rule}
    assert read_checkpoint(tmp_path / "best.pt")[0].decision["rule"] == rule
    with pytest.raises(UsageError, match=f"--decide {rule} became argmax"):
        fit(settings(shards, tmp_path, decide="argmax", resume=True, **HEAD))


def test_without_a_validation_split_there_is_nothing_to_calibrate_on(
    bucket: Path, tmp_path: Path
) -> None:
    shards = build_split(bucket, tmp_path / "shards", (0.8, 0.0, 0.2))
    for rule, kept in (("auto", "argmax"), ("median", "median")):
        run = tmp_path / rule
        fit(settings(shards, run, decide=rule, **HEAD))
        decision = read_checkpoint(run / "best.pt")[0].decision
        assert decision == {"rule": kept, "temperature": 1.0}


def test_names_have_neither_mean_nor_median(shards: Path, tmp_path: Path) -> None:
    for rule in ("mean", "median"):
        with pytest.raises(UsageError, match=rf"^--decide {rule}: needs counts, .*choose argmax$"):
            settings(shards, tmp_path, decide=rule).check_classes(["blue", "red"])
    for rule in ("auto", "argmax"):
        settings(shards, tmp_path, decide=rule).check_classes(["blue", "red"])
    with pytest.raises(UsageError, match="--decide mode: must be one of auto, argmax, mean, med"):
        settings(shards, tmp_path, decide="mode").check()


def test_evaluate_shows_the_most_probable_count_beside_the_rule(
    by_rmse: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, _ = read_checkpoint(by_rmse / "best.pt")
    rule = checkpoint.decision["rule"]
    assert rule != "argmax"
    Evaluate(by_rmse / "best.pt", str(shards), output=tmp_path, device="cpu").execute()
    told = capsys.readouterr().out
    summary = json.loads((tmp_path / "evaluation.json").read_text())
    (head,) = (line for line in told.splitlines() if "always" in line)
    assert head.split()[:3] == [rule, "argmax", "always"]
    (row,) = (line for line in told.splitlines() if line.startswith("RMSE"))
    wanted = (summary["rmse"], summary["argmax"]["rmse"], summary["baseline"]["rmse"])
    assert row.split()[1:] == [f"{value:.3f}" for value in wanted]
    assert f"expected calibration error {summary['ece']:.2%}" in told
    page = " ".join((tmp_path / "report.html").read_text().split())
    assert "Its most probable count" in page
    assert f"It answers with the {rule} of its probabilities" in page
