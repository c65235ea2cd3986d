"""Export: an ONNX file that needs nothing of ours and answers as the model does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bintally.counting.checkpoint import read_checkpoint
from bintally.counting.decision import DECISION_RULES, Decision, DecisionRule, decide
from bintally.counting.model import CountNet
from bintally.dataset.manifest import read_dataset
from bintally.dataset.samples import Samples
from bintally.errors import UsageError
from bintally.loading.augmentation import Draws
from bintally.loading.engines import make_engine
from bintally.loading.preprocessing import Preprocessing
from bintally.storage.opening import open_place
from tests.conftest import Command
from tests.training.runs import settings
from training.fit import fit
from training.inference.export import ExportedCounter, export


@pytest.fixture(scope="module")
def checkpoint(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("exported")
    fit(settings(shards, run, trainable="head", dropout=0.2, lr=0.05, epochs=3))
    return run / "best.pt"


@pytest.mark.parametrize("size", [(300, 420), (64, 64), (40, 31), (700, 90)])
def test_photos_are_stretched_as_the_engines_do(size: tuple[int, int]) -> None:
    """To a level of 255: the engines compute with integers, the file with floats."""
    torch.manual_seed(0)
    seen: list[torch.Tensor] = []

    class Remembers(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return images.mean((2, 3))

    photos = torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8)
    exported = ExportedCounter(
        Remembers(), Preprocessing(64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), [0, 1, 2], Decision()
    )
    exported(photos)
    expected = torch.nn.functional.interpolate(
        photos.permute(0, 3, 1, 2), (64, 64), mode="bilinear", antialias=True
    )
    off = (seen[0] * 255 - expected.float()).abs()
    assert off.max() < 1.01
    assert (off > 0.01).float().mean() < 0.05


def test_the_file_counts_what_the_model_counts(
    checkpoint: Path, shards: Path, tmp_path: Path, run: Command
) -> None:
    import onnxruntime
    import simplejpeg

    file = tmp_path / "model.onnx"
    result = run("training", "export", "--checkpoint", checkpoint, "--output", file, check=True)
    assert "differ by at most" in result.stdout
    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    (told,) = session.get_inputs()
    assert (told.name, told.type) == ("photos", "tensor(uint8)")
    place = open_place(shards)
    dataset = read_dataset(place)
    samples = Samples(place, dataset, "test")
    loaded, _ = read_checkpoint(checkpoint)
    model, preprocessing = loaded.build()
    engine = make_engine("cpu", preprocessing, torch.device("cpu"), len(samples))
    photos = [samples.photo(i) for i in range(len(samples))]
    (images,) = engine.run([(photos, Draws.nothing(len(photos)))])
    with torch.inference_mode():
        expected = Decision.from_dict(loaded.decision).probabilities(model(images)).numpy()
    for photo, probabilities in zip(photos, expected, strict=True):
        pixels = simplejpeg.decode_jpeg(photo.tobytes())[None]
        count, answered = session.run(None, {"photos": pixels})
        np.testing.assert_allclose(answered[0], probabilities, atol=5e-3)
        index = decide(answered, loaded.classes, loaded.decision["rule"])[0]
        assert count[0] == loaded.classes[index]


def test_the_count_is_no_class_index() -> None:
    counter = ExportedCounter(
        CountNet(torch.nn.Flatten(), 12, 4, 3, "head", seed=0),
        Preprocessing(2, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        [7, 8, 9],
        Decision(),
    )
    counts, probabilities = counter(torch.zeros(1, 5, 5, 3, dtype=torch.uint8))
    assert counts.item() == 7 + probabilities.argmax().item()


def test_the_same_checkpoint_gives_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    for name in "ab":
        assert export(checkpoint, tmp_path / name) < 1e-4
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    export(checkpoint, tmp_path / "a")


def test_a_file_of_somebody_elses_is_kept(checkpoint: Path) -> None:
    before = checkpoint.read_bytes()
    with pytest.raises(
        UsageError, match=r"--output .*best\.pt: is no ONNX file of ours, and stays"
    ):
        export(checkpoint, checkpoint)
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize("rule", DECISION_RULES)
def test_the_file_decides_as_everybody_does(rule: DecisionRule) -> None:
    """Of sixteenths, so that there are equals and middles."""
    draw = np.random.default_rng(0)
    sixteenths = draw.multinomial(16, np.full(5, 0.2), 3000).astype(np.float32) / 16
    shares = np.concatenate([sixteenths, draw.dirichlet(np.ones(5), 3000).astype(np.float32)])
    classes = [0, 1, 2, 5, 2**31 - 1]
    preprocessing = Preprocessing(2, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    counter = ExportedCounter(torch.nn.Identity(), preprocessing, classes, Decision(rule))
    decided = counter._decide(torch.from_numpy(shares))
    assert decided.tolist() == decide(shares, classes, rule).tolist()
