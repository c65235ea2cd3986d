"""A checkpoint measured on any dataset: whose results stay, and what they are compared with."""

from __future__ import annotations

import json
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
    run(*command, shards, check=True)
    before = contents(config.run)
    result = run(*command, others, check=True)
    (folder,) = config.run.glob("evaluation-*")
    after = contents(config.run)
    assert {path: data for path, data in after.items() if "/" not in path} == {
        path: data for path, data in before.items() if "/" not in path
    }
    assert f"report: {folder / 'report.html'}" in result.stdout
    counts = json.loads((others / "dataset.json").read_text())["splits"]["test"]["class_counts"]
    most = max(counts, key=lambda count: (counts[count], -int(count)))
    assert f"always {most}" in result.stdout
    assert json.loads((folder / "evaluation.json").read_text())["baseline"]["count"] == int(most)
    (folder / "report.html").write_text("mine")
    result = run(*command, others)
    assert result.returncode == UsageError.exit_code
    assert (folder / "report.html").read_text() == "mine"


@pytest.mark.parametrize("indices", [[0, 1, 1], [0, 1]])
def test_an_evaluation_of_other_than_every_sample_once_is_an_error(indices: list[int]) -> None:
    batch = Batch(torch.zeros(len(indices), 2), torch.zeros(len(indices)).long(), np.array(indices))
    with pytest.raises(RuntimeError, match="every sample exactly once"):
        evaluate_batches(
            torch.nn.Identity(), [batch], 3, 2, ALONE, batch_size=3, precision=torch.float32
        )
