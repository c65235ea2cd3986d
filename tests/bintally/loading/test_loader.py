"""`bintally.Loader`: what a training loop of one's own may rely on."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

import bintally
from bintally.storage.opening import open_place
from tests.conftest import copy


def open_loader(shards: Path | str, **more: Any) -> bintally.Loader:
    small: dict[str, Any] = {"batch_size": 16, "image_size": 32, "device": "cpu", "seed": 3}
    return bintally.Loader(shards, **(small | more))


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch, shards: Path) -> Any:
    """Opens a loader on each of some ranks."""

    def open_ranks(number: int, **more: Any) -> list[bintally.Loader]:
        loaders = []
        for rank in range(number):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", str(number))
            loaders.append(open_loader(shards, **more))
        return loaders

    return open_ranks


def steps(loaders: list[bintally.Loader]) -> Iterator[list[str]]:
    """An epoch's steps: the ids of all ranks' parts."""
    for parts in zip(*loaders, strict=True):
        yield [id_ for batch in parts for id_ in batch.ids]


def test_importing_bintally_imports_nothing_heavy() -> None:
    code = "import sys, bintally; print({'torch', 'numpy', 'ray', 'pyarrow'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert {*bintally.__all__} == {*bintally.MODULES} <= {*dir(bintally)}
    for name in bintally.__all__:
        assert getattr(bintally, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'Loder'"):
        bintally.Loder  # noqa: B018


def test_a_batch_unpacks_and_names_its_photos(shards: Path) -> None:
    loader = open_loader(shards)
    batch = next(iter(loader))
    images, labels = batch
    assert images.shape == (16, 3, 32, 32)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64
    known = {id_: loader.samples.count(i) for i, id_ in enumerate(loader.samples.ids)}
    assert [loader.classes[label] for label in labels] == [known[id_] for id_ in batch.ids]


def test_every_for_is_an_epoch_also_after_one_that_was_left(shards: Path) -> None:
    loader = open_loader(shards)
    epochs = [[batch.ids for batch in loader] for _ in range(3)]
    assert [len(epoch) for epoch in epochs] == [len(loader)] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    again = open_loader(shards)
    assert [batch.ids for batch in islice(again, 2)] == epochs[0][:2]
    assert [batch.ids for batch in again] == epochs[1]
    for number, batch in enumerate(again, 1):  # Left at its very end, as Lightning does.
        last = batch.ids
        if number == len(again):
            break
    assert last == epochs[2][-1]
    assert again.state_dict()["epoch"] == 3


@pytest.mark.parametrize("more", [{}, {"where": "count <= 3", "batch_size": 7}])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (3, 2), (2, 1)])
def test_it_goes_on_from_any_step_on_any_number_of_ranks(
    ranks: Any, before: int, after: int, more: Any
) -> None:
    (alone,) = ranks(1, **more)
    whole = [step for _ in range(2) for step in steps([alone])]
    for stop in range(len(alone) + 1):
        loaders = ranks(before, **more)
        done = [*islice(steps(loaders), stop)]
        states = [pickle.loads(pickle.dumps(loader.state_dict())) for loader in loaders]
        assert all(state == states[0] for state in states)
        assert {type(value) for value in states[0].values()} <= {int, str}
        resumed = ranks(after, **more)
        for loader in resumed:
            loader.load_state_dict(states[0])
        while len(done) < len(whole):
            done += steps(resumed)
        assert done == whole


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_evaluation_sees_every_sample_once(ranks: Any, number: int, split: str) -> None:
    seen = []
    for loader in ranks(number, split=split, batch_size=8):
        batches = [batch.ids for batch in loader]
        assert len(batches) == len(loader)
        assert all(batches), "no rank gets an empty batch"
        seen += [id_ for ids in batches for id_ in ids]
    assert sorted(seen) == sorted(loader.samples.ids)


def test_an_evaluation_is_not_augmented_and_a_training_may_be(shards: Path) -> None:
    def pixels(**more: Any) -> dict[str, torch.Tensor]:
        loader = open_loader(shards, batch_size=8, **more)
        return {i: image for b in loader for i, image in zip(b.ids, b.images, strict=True)}

    plain, flipped = pixels(augment="none"), pixels()
    mirrored = [i for i in plain if not torch.equal(plain[i], flipped[i])]
    assert all(torch.equal(plain[i].flip(2), flipped[i]) for i in mirrored)
    assert 0 < len(mirrored) < len(plain)
    validation = pixels(split="validation")
    again = pixels(split="validation", seed=8)
    assert all(torch.equal(validation[i], again[i]) for i in validation)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("seed", {"seed": 4}),
        ("batch_size", {"batch_size": 17}),
        ("split", {"split": "test"}),
    ],
)
def test_a_state_of_other_data_is_refused(shards: Path, name: str, more: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} is .* here, and was"):
        open_loader(shards, **more).load_state_dict(open_loader(shards).state_dict())


@pytest.mark.parametrize("wrong", [{"step": 99}, {"epoch": -1}, {"step": None}, {"epoch": "0"}])
def test_a_state_that_is_no_place_is_refused(shards: Path, wrong: dict[str, Any]) -> None:
    loader = open_loader(shards)
    with pytest.raises(ValueError, match="no place in epochs of"):
        loader.load_state_dict(loader.state_dict() | wrong)
    with pytest.raises(ValueError, match=r"^dataset is "):
        loader.load_state_dict({})


def test_a_state_of_another_dataset_is_refused(shards: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    copy(open_place(shards), open_place(other))
    text = (other / "dataset.json").read_text()
    (other / "dataset.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match=r"^dataset is "):
        open_loader(other).load_state_dict(open_loader(shards).state_dict())


@pytest.mark.parametrize(
    ("message", "more"),
    [
        ("augment twirl: must be one of none, flip, light, imagenet", {"augment": "twirl"}),
        ("device tpu: must be one of auto, cpu, cuda", {"device": "tpu"}),
        ("engine fast: must be one of auto, dali, cpu", {"engine": "fast"}),
        ("on_bad_sample cry: must be one of stop, skip", {"on_bad_sample": "cry"}),
        ("batch_size 0: must be at least 1 for each of the 1 ranks", {"batch_size": 0}),
        ("batch_size 8.5: must be a whole number", {"batch_size": 8.5}),
        ("seed 'x': must be a whole number", {"seed": "x"}),
        ("image_size 0: must be at least 1", {"image_size": 0}),
        (r"mean \(0.5,\): must be three numbers, one for each channel", {"mean": (0.5,)}),
        ("batch_size 999: the train split has only [0-9]+ samples", {"batch_size": 999}),
        ("split all: must be one of train, validation, test", {"split": "all"}),
    ],
)
def test_a_bad_value_is_named_with_what_would_do(shards: Path, message: str, more: Any) -> None:
    with pytest.raises(bintally.UsageError, match=f"^{message}$"):
        open_loader(shards, **more)


def test_it_pickles_and_stands_where_it_stood(shards: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(shards.parent)
    loader = open_loader(shards.name)
    epoch = [batch.ids for batch in loader]
    loader = open_loader(shards.name)
    assert [batch.ids for batch in islice(loader, 2)] == epoch[:2]
    monkeypatch.chdir("/")
    copied = pickle.loads(pickle.dumps(loader))
    assert [batch.ids for batch in copied] == epoch[2:]


def test_shards_on_s3_are_streamed_through_a_cache(shards: Path, s3: str, tmp_path: Path) -> None:
    copy(open_place(shards), open_place(f"{s3}/shards"))
    loader = open_loader(f"{s3}/shards", cache=tmp_path / "cache")
    seen = [id_ for batch in loader for id_ in batch.ids]
    assert len({*seen}) == len(seen) == len(loader) * 16
    with pytest.raises(bintally.UsageError, match="name one"):
        open_loader(f"{s3}/shards")
