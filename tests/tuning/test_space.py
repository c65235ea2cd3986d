"""What a search may choose from, and the mistakes a file can hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bintally.errors import UsageError
from tuning.config import SearchConfig
from tuning.space import ORIGINAL, Choice, Range, Space, parse_space


def test_a_file_names_ranges_lists_and_what_is_the_same_in_all_trials() -> None:
    space = parse_space(
        """
        lr = {low = 1e-4, high = 0.1, log = true}
        epochs = {low = 5, high = 9}
        loss = ["cross-entropy", "ordinal"]
        optimizer = "sgd"
        """,
        "space.toml",
    )
    assert space.dimensions == {
        "lr": Range(1e-4, 0.1, log=True),
        "epochs": Range(5, 9),
        "loss": Choice(("cross-entropy", "ordinal")),
    }
    assert space.fixed == {"optimizer": "sgd"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lr = [", "not TOML"),
        ("learning_rate = [0.1]", "learning_rate cannot be searched; what can be: accumulate"),
        ("seed = [0, 1]", "seed cannot be searched"),
        ("lr = []", "an empty list leaves nothing to choose"),
        ("lr = {low = 1, high = 0}", "its low end, 1, is above 0"),
        ("lr = {low = 0, high = 1, log = true}", "begins above 0"),
        ('epochs = {low = 1, high = 3, steps = "2"}', "a range is {low = …, high = …}"),
        ("epochs = {low = 1, high = 3, log = 1}", "a range is {low = …, high = …}"),
        ('stop_on = ["overfit"]', "stop_on cannot be searched"),
        ("lr = {from = 0, to = 1}", "a range is {low = …, high = …}"),
        ("epochs = [1.5]", "takes whole numbers, not 1.5"),
        ("epochs = {low = 1.5, high = 3}", "takes whole numbers, not 1.5"),
        ('lr = ["high"]', "takes numbers, not 'high'"),
        ("compile = [1]", "takes true or false, not 1"),
        ("loss = [3]", "takes words, not 3"),
        ('optimizer = "sgd"', "names nothing to search"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, told: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_space(text, "space.toml")
    assert str(error.value).startswith("--space space.toml")
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('loss = ["cross-entropy", "ordnial"]', "--loss ordnial: must be one of cross-entropy, or"),
        ("dropout = [0.0, 1.5]", "--dropout 1.5: must be from 0 to below 1"),
        ("dropout = {low = 0.5, high = 1.0}", "--dropout 1.0: must be from 0 to below 1"),
        ("lr = {low = 0.0, high = 0.1}", "--lr 0.0: must be above 0"),
        ('lr = [0.1]\noptimizer = "adem"', "--optimizer adem: must be one of adam, adamw, sgd"),
        ("freeze_epochs = [0, 1]", "--trainable head keeps the backbone frozen anyway"),
        ("image_size = {low = 64, high = 128}", "image_size is a range, and each of its values"),
    ],
)
def test_values_that_a_training_would_refuse_are_refused_before_anything_starts(
    text: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "space.toml").write_text(text)
    config = SearchConfig("shards", tmp_path / "search", space=tmp_path / "space.toml")
    with pytest.raises(UsageError) as error:
        config.check_space(config.read_space())
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_what_decides_features_is_searched_as_a_list(tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text(
        "image_size = [64, 128]\nweights = ['none', 'imagenet']\naugment = ['flip', 'light']\n"
        "precision = ['fp32', 'bf16']\non_bad_sample = ['stop', 'skip']\n"
    )
    for trainable in ("head", "all"):
        config = SearchConfig(
            "shards", tmp_path / "search", space=tmp_path / "space.toml", trainable=trainable
        )
        config.check_space(config.read_space())
    SearchConfig("shards", tmp_path / "search").check_space(ORIGINAL)


@given(st.integers(1, 600))
def test_no_batch_is_larger_than_the_train_split(num_samples: int) -> None:
    if num_samples < 32:
        with pytest.raises(UsageError, match="batch_size"):
            ORIGINAL.limited(num_samples)
        return
    sizes = ORIGINAL.limited(num_samples).dimensions["batch_size"]
    assert isinstance(sizes, Choice)
    assert sizes.values == tuple(s for s in (32, 64, 128, 256, 512) if s <= num_samples)


@given(
    st.floats(1e-6, 1.0),
    st.floats(1.0, 1e6),
    st.booleans(),
    st.integers(1, 9),
)
def test_a_grid_goes_from_end_to_end(low: float, ratio: float, log: bool, steps: int) -> None:
    points = Range(low, low * ratio, log, steps).points()
    assert len(points) == steps
    assert points == sorted(points)
    assert points[0] == low
    assert steps == 1 or points[-1] == pytest.approx(low * ratio)


def test_a_grid_has_every_combination_once() -> None:
    space = Space({"epochs": Range(1, 3, steps=3), "loss": Choice(("a", "b"))}, {})
    assert space.grid() == [
        {"epochs": epochs, "loss": loss} for epochs in (1, 2, 3) for loss in ("a", "b")
    ]
    with pytest.raises(UsageError, match="epochs is a range; give it steps"):
        Space({"epochs": Range(1, 3)}, {}).grid()
