"""A checkpoint measured on any dataset: whose results stay, and what they are compared with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bintally.errors import UsageError
from bintally.loading.batches import Batch
from bintally.storage.opening import open_place
from sharding.build import build
from sharding.distribute import Processes
from sharding.planning.options import Options
from tests.conftest import Command, contents
from tests.training.runs import settings
from tests.training.survival.test_survival import ALONE
from training.evaluate import evaluate_batches
from training.fit import fit
from training.inference.measure import measure


def build_split(bucket: Path, folder: Path, split: tuple[float, float, float]) -> Path:
    options = Options(split=split)
    build(open_place(bucket), open_place(folder), options, distributor=Processes(1), connections=8)
    return folder


@pytest.mark.slow
def test_another_dataset_leaves_a_run_its_results(
    bucket: Path, tmp_path: Path, run: Command
) -> None:
    """And where that one has no train split, none of its photos is called the most frequent."""
    shards = build_split(bucket, tmp_path / "shards", (0.8, 0.0, 0.2))
    others = build_split(bucket, tmp_path / "others", (0.0, 0.0, 1.0))
    config = settings(shards, tmp_path / "run", trainable="head")
    # Without a validation split, a frozen backbone trains as well.
    fit(config)
    command = ["training", "evaluate", "--checkpoint", config.run / "best.pt", "--shards"]
    before = contents(config.run)
    run(*command, shards, check=True)
    result = run(*command, others, check=True)
    (folder,) = config.run.glob("evaluation-test-*")
    assert before.items() <= contents(config.run).items()
    assert f"report: {folder / 'report.html'}" in result.stdout
    counts = json.loads((others / "dataset.json").read_text())["splits"]["test"]["class_counts"]
    most = max(counts, key=lambda count: (counts[count], -int(count)))
    assert f"always {most}" in result.stdout
    assert json.loads((folder / "evaluation.json").read_text())["baseline"]["count"] == int(most)
    (folder / "report.html").write_text("mine")
    result = run(*command, others)
    assert result.returncode == UsageError.exit_code
    assert (folder / "report.html").read_text() == "mine"


def test_what_a_run_found_itself_stays_whatever_is_evaluated(
    finished: Path, shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = contents(run)
    summary, folder = measure(run / "best.pt", str(shards), "test", None, device="cpu")
    assert summary is not None
    assert folder == run / "evaluation-test"
    assert json.loads((folder / "evaluation.json").read_text()) == summary
    assert summary["split"] == "test"
    assert "How it learned" in (folder / "report.html").read_text(), "the run's curves"
    with pytest.raises(UsageError, match=r"--output .*run: holds a run, whose own results stay"):
        measure(run / "best.pt", str(shards), "test", run, device="cpu")
    after = contents(run)
    assert {path: after[path] for path in before} == before
    assert after.keys() - before.keys() == {
        "evaluation-test/evaluation.json",
        "evaluation-test/report.html",
    }


@pytest.mark.parametrize("indices", [[0, 1, 1], [0, 1]])
def test_an_evaluation_of_other_than_every_sample_once_is_an_error(indices: list[int]) -> None:
    batch = Batch(torch.zeros(len(indices), 2), torch.zeros(len(indices)).long(), np.array(indices))
    with pytest.raises(RuntimeError, match="every sample exactly once"):
        evaluate_batches(
            torch.nn.Identity(), [batch], 3, 2, ALONE, batch_size=3, precision=torch.float32
        )
