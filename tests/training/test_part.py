"""A run on a part of a dataset: `fit --where`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bintally.counting.checkpoint import read_checkpoint
from bintally.errors import UsageError
from tests.bintally.dataset.test_where import queried
from tests.training.runs import decoding, same_tensors, settings
from training.fit import fit


def test_a_run_on_a_part_sees_it_whole_and_nothing_else(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, tmp_path / "run", where="count <= 3")
    fitted = fit(config)
    train, validation = (len(queried(shards, split, 3)) for split in ("train", "validation"))
    whole_batches = train // config.batch_size * config.batch_size
    assert [line["train"]["samples"] for line in fitted.history] == [whole_batches] * 2
    evaluation = json.loads((config.run / "evaluation.json").read_text())
    assert evaluation["samples"] == validation
    for row in evaluation["confusion_matrix"][4:]:
        assert sum(row) == 0
    assert read_checkpoint(config.run / "best.pt")[0].config["where"] == "count <= 3"


def test_a_part_belongs_to_the_run(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, tmp_path / "run", where="count <= 3")
    fit(replace(config, epochs=1))
    for where in (None, "count <= 4"):
        with pytest.raises(UsageError, match="--where count <= 3 became"):
            fit(replace(config, epochs=1, where=where, resume=True))
    with pytest.raises(UsageError, match=r"only 0 samples where count > 99$"):
        fit(replace(config, run=tmp_path / "none", where="count > 99"))


@pytest.mark.slow
def test_a_head_learns_a_part_from_its_features_as_from_its_photos(
    shards: Path, tmp_path: Path
) -> None:
    head = {"trainable": "head", "where": "count in (1, 2, 3)", "precision": "fp32"}
    kept = settings(shards, tmp_path / "kept", **head)
    decoded = decoding(shards, tmp_path / "decoded", **head)
    features, photos = fit(kept), fit(decoded)
    assert [line["train"]["samples"] for line in features.history] == [
        line["train"]["samples"] for line in photos.history
    ]
    for mine, other in zip(features.history, photos.history, strict=True):
        assert mine["train"]["loss"] == pytest.approx(other["train"]["loss"], rel=1e-4)
    again = settings(shards, tmp_path / "again", **head)
    fit(again)
    assert same_tensors(kept.run / "best.pt", again.run / "best.pt")
