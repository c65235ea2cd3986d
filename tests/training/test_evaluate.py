"""Evaluation: every sample once, and what a photo means there that does not decode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bintally.errors import WorkError
from bintally.loading.engines import make_engine
from tests.bintally.counting.test_model import build
from tests.bintally.loading.test_batches import CLASSES, damaged, open_samples
from training.evaluate import Evaluation, evaluate
from training.launch.distributed import Process

__all__ = ["damaged"]  # A fixture.


def evaluated(folder: Path, left_out: set[int] | None) -> Evaluation:
    cpu = torch.device("cpu")
    model, preprocessing = build("timm:test_resnet", trainable="all", head_width=8, seed=0)
    return evaluate(
        model,
        open_samples(folder),
        CLASSES,
        make_engine("cpu", preprocessing, cpu, 8),
        Process(0, 1, 0, cpu),
        batch_size=8,
        precision=torch.float32,
        left_out=left_out,
    )


def test_a_photo_that_does_not_decode_is_named_left_out_and_counted(
    damaged: tuple[Path, list[int]], shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, bad = damaged
    samples = open_samples(folder)
    whole, left_out = evaluated(shards, set()), set[int]()
    assert whole.left_out == 0
    found = evaluated(folder, left_out)
    told = caplog.text
    for index in bad:
        assert f"{samples.where(index)}: the photo does not decode; it is left out" in told
    rest = np.setdiff1d(np.arange(len(samples)), bad)
    assert left_out == {*bad}
    assert found.indices.tolist() == rest.tolist()
    assert found.labels.tolist() == whole.labels[rest].tolist()
    np.testing.assert_allclose(found.probabilities, whole.probabilities[rest], atol=1e-6)
    summary = found.summarize(CLASSES, 0)
    assert summary["samples"] == len(rest)
    assert summary["left_out"] == len(bad)


def test_a_photo_that_does_not_decode_ends_an_evaluation_that_was_not_told_otherwise(
    damaged: tuple[Path, list[int]],
) -> None:
    with pytest.raises(WorkError, match=r"the photo does not decode; .*--on-bad-sample skip"):
        evaluated(damaged[0], None)
