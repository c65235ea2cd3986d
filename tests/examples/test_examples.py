"""The examples run as they stand, and are short."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from webdataset import ShardWriter

from tests.bintally.loading.test_batches import open_samples
from tests.conftest import REPOSITORY

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(*words: object, launcher: list[str] | None = None) -> str:
    done = subprocess.run(
        [*(launcher or [sys.executable]), *map(str, words)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(example: Path) -> None:
    assert len(example.read_text().splitlines()) <= 60


@pytest.mark.slow
def test_a_loop_of_ones_own_resumes_exactly_and_runs_under_torchrun(
    shards: Path, tmp_path: Path
) -> None:
    example = REPOSITORY / "examples/torch_loop.py"
    assert "epoch 2" in run(example, shards, tmp_path / "both.pt", launcher=TORCHRUN)
    small = example.read_text().replace(
        "batch_size=64, image_size=96", "batch_size=8, image_size=32"
    )
    (tmp_path / "whole.py").write_text(small)
    run(tmp_path / "whole.py", shards, tmp_path / "whole.pt")
    # Ended in the middle of an epoch, after the third step.
    text = small.replace("SAVE_EVERY = 2, 10", "SAVE_EVERY = 2, 3")
    text = text.replace("replace(file)", "replace(file)\n            sys.exit()")
    (tmp_path / "first.py").write_text(text)
    run(tmp_path / "first.py", shards, tmp_path / "parts.pt")
    assert torch.load(tmp_path / "parts.pt")["loader"]["step"] == 3
    run(tmp_path / "whole.py", shards, tmp_path / "parts.pt")
    whole, parts = (
        torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "parts.pt")
    )
    assert whole["loader"] == parts["loader"]
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name]), name


@pytest.mark.slow
def test_timms_helpers_train_on_our_loader(shards: Path) -> None:
    assert "epoch 2: loss" in run(REPOSITORY / "examples/timm_loop.py", shards, "test_resnet")


@pytest.mark.slow
def test_lightning_trains_on_our_loader(shards: Path) -> None:
    pytest.importorskip("lightning")
    assert "'accuracy':" in run(REPOSITORY / "examples/lightning_fit.py", shards)


@pytest.mark.slow
def test_tars_of_others_are_adopted_and_trained_on_as_imagenet_is(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, name in (("train", "train"), ("validation", "val")):
        samples = open_samples(shards, split)
        (tmp_path / name).mkdir()
        with ShardWriter(str(tmp_path / name / "%05d.tar"), maxcount=20, verbose=0) as sink:
            for i, key in enumerate(samples.ids):
                photo = samples.photo(i).tobytes()
                sink.write({"__key__": key, "jpg": photo, "cls": samples.count(i)})
    run("-m", "bintally", "adopt", tmp_path)
    monkeypatch.setenv("EPOCHS", "1")
    monkeypatch.setenv("BATCH_SIZE", "16")
    printed = run(REPOSITORY / "examples/imagenet_loop.py", tmp_path, "squeezenet1_1")
    assert f"of {len(open_samples(shards, 'validation'))}" in printed
