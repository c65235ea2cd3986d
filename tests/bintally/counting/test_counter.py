"""`bintally.Counter`: a checkpoint that counts, from Python."""

from __future__ import annotations

from pathlib import Path

import pytest

import bintally
from bintally.counting.checkpoint import Checkpoint, write_checkpoint
from bintally.counting.model import build_model
from bintally.dataset.samples import Samples
from bintally.storage.opening import open_place


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was never trained, for the counts 0, 1 and 7."""
    model, preprocessing = build_model(
        "timm:test_resnet", "none", image_size=64, head_width=8, num_classes=3, trainable="all"
    )
    file = tmp_path_factory.mktemp("model") / "best.pt"
    config = {"backbone": "timm:test_resnet", "head_width": 8, "trainable": "all", "epochs": 1}
    write_checkpoint(
        file,
        Checkpoint(
            model=model.state_dict(),
            optimizer={},
            schedule={},
            ema=None,
            scaler=None,
            random={"seed": 0},
            epoch=1,
            step=0,
            sums={},
            best={},
            config=config,
            dataset="",
            classes=[0, 1, 7],
            preprocessing=preprocessing.to_dict(),
        ),
    )
    return file


@pytest.fixture(scope="module")
def photos(shards: Path) -> list[bytes]:
    place = open_place(shards)
    samples = Samples(place, bintally.read_dataset(shards), "test")
    return [samples.photo(i).tobytes() for i in range(5)]


def test_each_photo_is_answered_with_its_count_and_what_else_may_be(
    checkpoint: Path, photos: list[bytes]
) -> None:
    answers = bintally.Counter(checkpoint, device="cpu").count(photos)
    assert len(answers) == 5
    for answer in answers:
        assert answer.probabilities.keys() == {0, 1, 7}
        assert answer.count == max(answer.probabilities, key=answer.probabilities.__getitem__)
        assert answer.confidence == answer.probabilities[answer.count]
        assert sum(answer.probabilities.values()) == pytest.approx(1)
        mean = sum(int(count) * share for count, share in answer.probabilities.items())
        assert answer.expected == pytest.approx(mean)
        assert answer.error is None


def test_an_answer_does_not_depend_on_the_photos_beside_it(
    checkpoint: Path, photos: list[bytes]
) -> None:
    counter = bintally.Counter(checkpoint, device="cpu", batch_size=2, precision="fp32")
    together = counter.count(photos)
    for photo, answer in zip(photos, together, strict=True):
        (alone,) = counter.count([photo])
        assert alone.count == answer.count
        assert alone.expected == pytest.approx(answer.expected, abs=1e-4)
    assert counter.count([]) == []


def test_a_photo_that_does_not_decode_is_an_error_beside_the_others_answers(
    checkpoint: Path, photos: list[bytes]
) -> None:
    counter = bintally.Counter(checkpoint, device="cpu")
    good, cut, empty, other = counter.count([photos[0], photos[1][:200], b"", photos[2]])
    assert good.error is other.error is None
    for bad in (cut, empty):
        assert bad.count is bad.expected is bad.confidence is None
        assert bad.error
        assert bad.to_dict() == {"error": bad.error}


def test_names_of_photos_are_no_photos(checkpoint: Path, photos: list[bytes]) -> None:
    counter = bintally.Counter(checkpoint, device="cpu")
    for wrong in (["photo.jpg"], photos[0], [photos[0], Path("photo.jpg")]):
        with pytest.raises(TypeError, match="each the bytes of a JPEG"):
            counter.count(wrong)  # type: ignore[arg-type]


def test_a_file_that_is_no_checkpoint_is_named(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(b"\xff\xd8 not a checkpoint")
    with pytest.raises(bintally.UsageError, match=r"photo\.jpg: not a checkpoint"):
        bintally.Counter(file)
    for name in ("device", "engine", "precision"):
        with pytest.raises(bintally.UsageError, match=f"^{name} fast: must be one of auto, "):
            bintally.Counter(checkpoint, **{name: "fast"})  # type: ignore[arg-type]
    with pytest.raises(bintally.UsageError, match=r"missing\.pt: cannot be read"):
        bintally.Counter(tmp_path / "missing.pt")
