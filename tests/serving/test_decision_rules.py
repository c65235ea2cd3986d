"""A checkpoint's decision is everybody's: evaluate, predict, the ONNX file and the server."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bintally.counting.checkpoint import checkpoint_bytes, parse_checkpoint, read_checkpoint
from bintally.counting.counter import Counter
from bintally.counting.decision import DECISION_RULES, Decision, DecisionRule
from bintally.dataset.manifest import read_dataset
from bintally.dataset.samples import Samples
from bintally.storage.opening import open_place
from tests.serving.conftest import StartServer
from tests.serving.test_server import as_batch
from training.inference.bulk import BulkJob, SplitPhotos, predict_bulk
from training.inference.export import export
from training.inference.measure import measure
from training.inference.predict import predict

SPLIT, TEMPERATURE, SPREAD = "train", 1.7, 1.5


@pytest.fixture(scope="module")
def deciding(
    checkpoint: Path, samples: Samples, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The same model, once with each rule; one whose logits differ from photo to photo."""
    folder = tmp_path_factory.mktemp("deciding")
    loaded, _ = read_checkpoint(checkpoint)
    counter = Counter(checkpoint, device="cpu", precision="fp32")
    images, _ = counter.decode([samples.photo(i).tobytes() for i in range(len(samples))])
    assert images is not None
    logits = torch.tensor(counter.predict(images)).log() * loaded.decision["temperature"]
    model = dict(loaded.model)
    stretch = SPREAD / logits.std(0).mean()
    model["head.2.bias"] = stretch * (model["head.2.bias"] - logits.mean(0))
    model["head.2.weight"] = stretch * model["head.2.weight"]
    files: dict[str, Path] = {}
    for rule in DECISION_RULES:
        files[rule] = folder / f"{rule}.pt"
        decision = Decision(rule, TEMPERATURE).to_dict()
        files[rule].write_bytes(checkpoint_bytes(replace(loaded, model=model, decision=decision)))
    return files


@pytest.fixture(scope="module")
def samples(shards: Path) -> Samples:
    place = open_place(shards)
    return Samples(place, read_dataset(place), SPLIT)


def bulk_counts(file: Path, shards: Path, output: Path) -> list[int]:
    job = BulkJob(file, SplitPhotos(str(shards), SPLIT), "cpu", "cpu", "fp32")
    predict_bulk(job, output)
    counts: list[int] = pq.read_table(output)["count"].to_pylist()
    return counts


@pytest.mark.parametrize("rule", DECISION_RULES)
def test_evaluate_predict_and_the_onnx_file_count_alike(
    rule: DecisionRule, deciding: dict[str, Path], samples: Samples, shards: Path, tmp_path: Path
) -> None:
    import onnxruntime
    import simplejpeg

    file = deciding[rule]
    counts = bulk_counts(file, shards, tmp_path / "counts.parquet")
    summary, _ = measure(file, str(shards), SPLIT, tmp_path, precision="fp32", engine_name="cpu")
    assert summary is not None
    columns = np.array(summary["confusion_matrix"]).sum(axis=0)
    assert columns.tolist() == np.bincount(counts, minlength=6).tolist()
    assert summary["decision"] == {"rule": rule, "temperature": TEMPERATURE}

    photos = [samples.photo(i).tobytes() for i in range(len(samples))]
    # Of the model's size, so that nobody's way to resize a photo decides.
    small = [to_jpeg(photo, 64) for photo in photos]
    paths = [tmp_path / f"{i}.jpg" for i in range(2 * len(photos))]
    for path, photo in zip(paths, photos + small, strict=True):
        path.write_bytes(photo)
    answers = [*predict(file, paths, device="cpu", engine="cpu", precision="fp32")]
    assert [answer["count"] for answer in answers[: len(photos)]] == counts
    for answer in answers:
        assert answer["confidence"] == answer["probabilities"][str(answer["count"])]

    export(file, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    told = session.get_modelmeta().custom_metadata_map
    assert told == {"classes": "[0, 1, 2, 3, 4, 5]", "rule": f'"{rule}"', "temperature": "1.7"}
    pixels = np.stack([simplejpeg.decode_jpeg(photo) for photo in small])
    exported, _ = session.run(None, {"photos": pixels})
    assert exported.tolist() == [answer["count"] for answer in answers[len(photos) :]]


def to_jpeg(photo: bytes, side: int) -> bytes:
    sink = io.BytesIO()
    Image.open(io.BytesIO(photo)).resize((side, side)).save(sink, "JPEG", quality=95)
    return sink.getvalue()


def test_the_rules_differ(deciding: dict[str, Path], shards: Path, tmp_path: Path) -> None:
    """Else nothing here would tell them apart."""
    found = {rule: bulk_counts(deciding[rule], shards, tmp_path / rule) for rule in DECISION_RULES}
    assert len({*map(tuple, found.values())}) == 3


@pytest.mark.slow
def test_the_server_counts_as_predict_does_with_whatever_rule_it_is_given(
    deciding: dict[str, Path],
    samples: Samples,
    shards: Path,
    tmp_path: Path,
    start_server: StartServer,
) -> None:
    served = tmp_path / "best.pt"
    served.write_bytes(deciding[DECISION_RULES[0]].read_bytes())
    server = start_server(served, "--replicas", 1, "--precision", "fp32")
    server.wait_until_ready()
    photos = [samples.photo(i).tobytes() for i in range(len(samples))]

    def answers(photos: Sequence[bytes]) -> list[dict[str, object]]:
        found = []
        for begin in range(0, len(photos), 8):
            batch = as_batch(photos[begin : begin + 8])
            found += server.post(batch, "application/json").json["predictions"]
        return found

    for rule in DECISION_RULES:
        served.write_bytes(deciding[rule].read_bytes())
        wanted = read_checkpoint(served)[1]
        for _ in range(600):
            if answers(photos[:1])[0]["model"] == wanted:
                break
            time.sleep(0.1)
        counted = [answer["count"] for answer in answers(photos)]
        assert counted == bulk_counts(deciding[rule], shards, tmp_path / f"{rule}.parquet")


def test_a_checkpoint_of_an_older_version_answers_with_the_most_probable_count(
    checkpoint: Path, deciding: dict[str, Path], shards: Path, tmp_path: Path
) -> None:
    """It says nothing of a decision."""
    value = torch.load(deciding["median"], weights_only=True)
    del value["decision"]
    torch.save(value, tmp_path / "old.pt")
    old = parse_checkpoint((tmp_path / "old.pt").read_bytes(), tmp_path)
    assert Decision.from_dict(old.decision) == Decision("argmax", 1.0)
    counts = bulk_counts(tmp_path / "old.pt", shards, tmp_path / "old")
    assert counts == bulk_counts(deciding["argmax"], shards, tmp_path / "argmax")
