"""Photos counted by the command, with a checkpoint."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bintally.counting.checkpoint import read_checkpoint
from tests.conftest import Command
from tests.training.test_fit import evaluation


def predictions(result: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.slow
def test_predict_answers_with_the_count_that_evaluation_finds(
    finished: Path, shards: Path, bucket: Path, run: Command, tmp_path: Path
) -> None:
    from tests.sharding.building.test_build import samples_in_tars

    ids = [id_ for id_, (split, *_) in samples_in_tars(shards).items() if split == "test"]
    photos = [bucket / f"bin-images/{id_}.jpg" for id_ in ids]
    answers = predictions(
        run("training", "predict", "--checkpoint", finished / "best.pt", *photos, check=True)
    )
    assert [Path(answer["image"]).stem for answer in answers] == ids
    for answer in answers:
        probabilities = answer["probabilities"]
        assert sum(probabilities.values()) == pytest.approx(1)
        assert probabilities[str(answer["count"])] == answer["confidence"]
    run(
        *("training", "evaluate", "--checkpoint", finished / "best.pt", "--shards", shards),
        *("--precision", "fp32", "--output", tmp_path),
        check=True,
    )
    matrix = evaluation(tmp_path)["confusion_matrix"]
    columns = [sum(column) for column in zip(*matrix, strict=True)]
    assert columns == [sum(answer["count"] == count for answer in answers) for count in range(6)]


def test_the_count_is_no_class_index(bucket: Path, tmp_path: Path, finished: Path) -> None:
    """The original's trap: with classes that do not begin at 0, an index is not a count."""
    from bintally.counting.checkpoint import write_checkpoint
    from training.inference.predict import predict

    checkpoint, _ = read_checkpoint(finished / "best.pt")
    shifted = vars(checkpoint) | {"classes": [10, 11, 12, 13, 14, 15]}
    write_checkpoint(tmp_path / "shifted.pt", type(checkpoint)(**shifted))
    photo = [bucket / "bin-images/00001.jpg"]
    (plain,) = predict(finished / "best.pt", photo, device="cpu", engine="auto")
    (answer,) = predict(tmp_path / "shifted.pt", photo, device="cpu", engine="auto")
    assert answer["count"] == plain["count"] + 10
    assert answer["expected"] == pytest.approx(plain["expected"] + 10)


@pytest.mark.slow
def test_a_bad_photo_fails_alone(
    finished: Path, bucket: Path, tmp_path: Path, run: Command
) -> None:
    good = bucket / "bin-images/00001.jpg"
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(good.read_bytes()[:3000])
    photos: Sequence[Path] = [cut, good, tmp_path / "missing.jpg"]
    result = run("training", "predict", "--checkpoint", finished / "best.pt", *photos)
    assert result.returncode == 1
    answers = predictions(result)
    assert ["error" in answer for answer in answers] == [True, False, True]
    assert 0 <= answers[1]["count"] <= 5
