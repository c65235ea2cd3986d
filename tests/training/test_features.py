"""Kept features: the same mathematics as decoding every epoch, computed once."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import training.features
from bintally.counting.checkpoint import read_checkpoint
from bintally.dataset.manifest import read_dataset
from bintally.dataset.samples import Samples
from bintally.dataset.shard_cache import ShardCache
from bintally.errors import WorkError
from bintally.loading.augmentation import Draws
from bintally.loading.engines import make_engine
from bintally.loading.order import TrainingOrder
from bintally.options import OnBadSample
from bintally.storage.opening import open_place
from bintally.storage.place import Place
from tests.bintally.counting.test_model import build
from tests.bintally.loading.test_batches import damaged
from tests.conftest import REPOSITORY
from tests.counting_place import CountingPlace
from tests.training.runs import arguments, decoding, settings, torchrun
from training.config import FitConfig
from training.features import Features, compute_features
from training.fit import fit
from training.heads import HeadTraining, read_head_data
from training.inputs import FeatureInputs
from training.launch.distributed import Process

__all__ = ["damaged"]  # A fixture.

ALONE = Process(0, 1, 0, torch.device("cpu"))


def kept(cache: Path) -> dict[str, bytes]:
    """The files of features in a cache, by name."""
    return {path.name: path.read_bytes() for path in sorted(cache.glob("features/*/*"))}


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BINTALLY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_head_trained_on_features_is_the_one_trained_on_photos(
    shards: Path, tmp_path: Path, own_cache: Path
) -> None:
    recipe = {"trainable": "head", "epochs": 3, "dropout": 0.2, "ema": 0.9, "lr": 0.01}
    fit(settings(shards, tmp_path / "kept", **recipe))
    assert kept(own_cache).keys() == {"train-2.npy", "validation-1.npy"}
    fit(decoding(shards, tmp_path / "decoded", **recipe))
    (one, _), (two, _) = (read_checkpoint(tmp_path / f"{n}/last.pt") for n in ("kept", "decoded"))
    assert one.model.keys() == two.model.keys()
    for name in one.model:
        torch.testing.assert_close(one.model[name], two.model[name], rtol=0, atol=1e-4)
    for a, b in zip(*(read_lines(tmp_path / n) for n in ("kept", "decoded")), strict=True):
        assert a["train"]["loss"] == pytest.approx(b["train"]["loss"], abs=1e-4)
        assert a["validation"]["loss"] == pytest.approx(b["validation"]["loss"], abs=1e-4)


def test_without_flips_no_second_view_is_computed(
    shards: Path, tmp_path: Path, own_cache: Path
) -> None:
    recipe = {"trainable": "head", "augment": "none"}
    fit(settings(shards, tmp_path / "kept", **recipe))
    assert kept(own_cache).keys() == {"train-1.npy", "validation-1.npy"}
    fit(decoding(shards, tmp_path / "decoded", **recipe))
    (one, _), (two, _) = (read_checkpoint(tmp_path / f"{n}/last.pt") for n in ("kept", "decoded"))
    for name in one.model:
        torch.testing.assert_close(one.model[name], two.model[name], rtol=0, atol=1e-4)


def read_lines(run: Path) -> list[dict[str, dict[str, float]]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_features_depend_on_neither_batches_nor_processes_nor_are_computed_again(
    shards: Path, tmp_path: Path, own_cache: Path
) -> None:
    head = {"trainable": "head"}
    fit(settings(shards, tmp_path / "1", **head))
    alone = kept(own_cache)
    times = [path.stat().st_mtime_ns for path in sorted(own_cache.glob("features/*/*"))]
    fit(settings(shards, tmp_path / "2", batch_size=10, **head))
    assert times == [p.stat().st_mtime_ns for p in sorted(own_cache.glob("features/*/*"))]
    for path in own_cache.glob("features/*/*"):
        path.unlink()
    result = torchrun(
        2, "training", "fit", *arguments(settings(shards, tmp_path / "3", batch_size=12, **head))
    )
    assert result.returncode == 0, result.stderr
    assert kept(own_cache) == alone


def compute(
    folder: Path,
    place: Place,
    stop_after: int | None = None,
    *,
    on_bad_sample: OnBadSample = "stop",
    cache: ShardCache | None = None,
    then: Callable[[], object] = lambda: None,
) -> Features:
    """Computes the train split's features; after so many chunks it is stopped, or `then` is done
    once."""
    dataset = read_dataset(place)
    model, preprocessing = build("timm:test_resnet", trainable="head", head_width=8, seed=0)
    left = stop_after

    def pause() -> None:
        nonlocal left
        if left is not None:
            left -= 1
            if left == 0 and not then():
                raise KeyboardInterrupt

    return compute_features(
        folder,
        model.backbone,
        Samples(place, dataset, "train", cache),
        dataset.classes,
        make_engine("cpu", preprocessing, ALONE.device, 64),
        ALONE,
        torch.float32,
        on_bad_sample=on_bad_sample,
        pause=pause,
    )


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.features, "CHUNK", 16)
    monkeypatch.setattr(training.features, "BATCH_SIZE", 8)


@pytest.mark.usefixtures("small_chunks")
def test_a_run_may_finish_the_features_that_another_is_computing(
    shards: Path, tmp_path: Path
) -> None:
    place = open_place(shards)
    whole = compute(tmp_path / "whole", place)
    among = compute(
        tmp_path / "parts",
        place,
        stop_after=2,
        then=lambda: compute(tmp_path / "parts", place),
    )
    assert np.array_equal(whole.values, among.values)
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {"train-2.npy"}


@pytest.mark.usefixtures("small_chunks")
def test_damaged_features_are_computed_anew(shards: Path, tmp_path: Path) -> None:
    place = open_place(shards)
    whole = compute(tmp_path, place).values.copy()
    file = tmp_path / "train-2.npy"
    data = file.read_bytes()
    for wrong in (bytes(len(data)), data[:-100]):
        file.write_bytes(wrong)
        (tmp_path / "train-2-000001.npy").write_bytes(wrong[:1000])
        assert np.array_equal(compute(tmp_path, place).values, whole)
        assert [path.name for path in tmp_path.iterdir()] == ["train-2.npy"]


@pytest.mark.usefixtures("small_chunks")
def test_features_from_s3_take_each_shard_once_through_a_small_cache(
    shards_on_s3: str, small_shards: Path, tmp_path: Path
) -> None:
    place = CountingPlace(shards_on_s3)
    train = read_dataset(place).splits["train"]
    cache = ShardCache(tmp_path / "cache", 4 * max(shard.bytes for shard in train.shards))
    features = compute(tmp_path / "s3", place, cache=cache)
    assert sorted(place.asked) == sorted(shard.path for shard in train.shards)
    here = compute(tmp_path / "here", open_place(small_shards))
    assert np.array_equal(features.values, here.values)


@pytest.mark.slow
def test_a_heads_trial_on_s3_is_the_training_of_a_winner(
    shards_on_s3: str, small_shards: Path, tmp_path: Path, own_cache: Path
) -> None:
    head = {"trainable": "head", "lr": 0.03}
    here = settings(small_shards, tmp_path / "here", **head)
    there = replace(here, shards=shards_on_s3, run=tmp_path / "there", cache=tmp_path / "cache")
    trial = HeadTraining(there, read_head_data(there, ALONE), ALONE)
    while not trial.ended:
        trial.train_epoch()
    assert fit(there).best == trial.best
    assert fit(here).best == trial.best, "and the same from a folder"


@pytest.mark.usefixtures("small_chunks")
def test_photos_that_do_not_decode_have_stand_ins_among_features_too(
    damaged: tuple[Path, list[int]], shards: Path, tmp_path: Path
) -> None:
    folder, bad = damaged
    place = open_place(folder)
    with pytest.raises(WorkError, match="the photo does not decode"):
        compute(tmp_path, place)
    for _ in range(2):  # Computed, and kept.
        found = compute(tmp_path, place, on_bad_sample="skip")
        assert found.stand_ins == {bad[0]: 5, bad[1]: 5, bad[2]: 0}
        rows = np.flatnonzero(np.isnan(found.values).any(axis=(0, 2)))
        assert rows.tolist() == bad
    with pytest.raises(WorkError, match="the photo does not decode"):
        compute(tmp_path, place)
    order = TrainingOrder(np.array([len(found.labels)]), 8, 0)
    train = FeatureInputs(FitConfig("", Path()), found, None, order, ALONE, torch.float32)
    for batch in train.batches(0, 0):
        assert batch.images.isfinite().all()
    # Once the photos are whole again, so are the features.
    shutil.copytree(shards, folder, dirs_exist_ok=True)
    mended = compute(tmp_path, place)
    assert not mended.stand_ins
    assert np.isfinite(mended.values).all()


@pytest.mark.usefixtures("small_chunks")
def test_an_interrupted_computation_goes_on_where_it_was(shards: Path, tmp_path: Path) -> None:
    place = open_place(shards)
    whole = compute(tmp_path / "whole", place)
    assert whole.values.shape == (2, 67, 96)
    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path / "parts", place, stop_after=2)
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    assert len(done) == 2
    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path / "parts", place, stop_after=3)
    later = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    assert later.items() > done.items(), "what was there is not computed again"
    again = compute(tmp_path / "parts", place)
    assert np.array_equal(whole.values, again.values)
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {"train-2.npy"}


def test_the_second_view_is_the_mirror_image(shards: Path, tmp_path: Path) -> None:
    values = compute(tmp_path, open_place(shards)).values
    assert not np.array_equal(values[0], values[1])
    place = open_place(shards)
    dataset = read_dataset(place)
    samples = Samples(place, dataset, "train")
    model, preprocessing = build("timm:test_resnet", trainable="head", head_width=8, seed=0)
    engine = make_engine("cpu", preprocessing, ALONE.device, 64)
    photos = [samples.photo(i) for i in range(4)]
    (mirrored,) = engine.run([(photos, Draws(np.ones(4, bool)))])
    with torch.inference_mode():
        features = model.eval().backbone(mirrored)
    np.testing.assert_allclose(values[1, :4], features.numpy(), atol=1e-5)


@pytest.mark.slow
def test_machines_with_caches_of_their_own_give_each_other_what_they_computed(
    shards: Path, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = settings(shards, tmp_path / "run", trainable="head")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "training", "fit", *arguments(config)],
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_RANK": "0",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "BINTALLY_CACHE": str(tmp_path / f"cache{rank}"),
            },
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
    assert kept(tmp_path / "cache0") == kept(tmp_path / "cache1")
    assert kept(tmp_path / "cache0").keys() == {"train-2.npy", "validation-1.npy"}
