"""What only a GPU can show. Run with `make gpu`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bintally.dataset.manifest import read_dataset
from bintally.dataset.samples import Samples
from bintally.loading.batches import load
from bintally.loading.engines import make_engine
from bintally.loading.preprocessing import Preprocessing
from bintally.options import EngineName
from bintally.storage.opening import open_place
from tests.bintally.loading.test_engines import agree
from tests.training.runs import settings
from training.fit import fit

pytestmark = pytest.mark.gpu

PREPROCESSING = Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return torch.device("cuda", 0)


@pytest.mark.parametrize("name", ["dali", "cpu"])
def test_the_gpu_engine_gives_the_pixels_of_the_cpu(
    name: EngineName, cuda: torch.device, bucket: Path
) -> None:
    engine = make_engine(name, PREPROCESSING, cuda, batch_size=16)
    agree(engine, [(bucket / f"bin-images/{i:05d}.jpg").read_bytes() for i in range(1, 11)])


def test_batches_stay_intact_while_the_pipeline_runs_ahead(
    cuda: torch.device, shards: Path
) -> None:
    """Outputs reach PyTorch without a copy: what comes later must not overwrite them."""
    place = open_place(shards)
    samples = Samples(place, read_dataset(place), "train")
    engine = make_engine("dali", PREPROCESSING, cuda, batch_size=8)
    order = [np.arange(i, i + 8) for i in range(0, 64, 8)]
    kept = list(load(samples, range(6), engine, order))
    again = load(samples, range(6), engine, order)
    for batch, other in zip(kept, again, strict=True):
        assert batch.images.device == cuda
        assert torch.equal(batch.images, other.images)
        assert batch.labels.tolist() == [samples.count(i) for i in batch.indices]


def test_a_run_on_the_gpu_resumes_and_evaluates(
    cuda: torch.device, shards: Path, tmp_path: Path
) -> None:
    config = settings(shards, tmp_path, device="cuda", precision="auto")
    fit(config)
    fit(settings(shards, tmp_path, device="cuda", precision="auto", resume=True))
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["samples"] == sum(map(sum, evaluation["confusion_matrix"])) == 26


@pytest.mark.parametrize(("trainable", "share"), [("head", 0.25), ("all", 0.5)])
def test_trials_share_a_gpu(
    trainable: str, share: float, cuda: torch.device, shards: Path, tmp_path: Path
) -> None:
    from tuning.config import SearchConfig
    from tuning.results import read_trials
    from tuning.search import search

    space = tmp_path / "space.toml"
    space.write_text("lr = {low = 0.001, high = 0.1, log = true}\nbatch_size = 16\nepochs = 2\n")
    told = search(
        SearchConfig(
            str(shards),
            tmp_path / "search",
            trials=4,
            space=space,
            backbone="resnet18",
            weights="none",
            trainable="head" if trainable == "head" else "all",
            image_size=64,
            gpus_per_trial=share,
        )
    )
    trials = read_trials(tmp_path / "search")
    assert [trial.gpus for trial in trials] == [share] * 4
    assert [len(trial.history) for trial in trials] == [2] * 4
    assert told["gpu_hours"] > 0
    assert told["concurrency"] == min(4, round(1 / share))
