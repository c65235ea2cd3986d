"""The dataset card: what a reader and Hugging Face find in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bintally.dataset.manifest import Dataset
from sharding.card.card import README, make_cards
from tests.sharding.card.examples import COUNTS, LEFT_OUT, NAMES, catalog_of, dataset_of


def card(dataset: Dataset, others: Sequence[Mapping[str, Any]] = ()) -> str:
    return make_cards(dataset, catalog_of(dataset, others))[README].decode()


def front_matter(text: str) -> dict[str, Any]:
    """As Hugging Face finds it."""
    match = re.match(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))", text)
    assert match is not None
    value: dict[str, Any] = yaml.safe_load(match[2])
    return value


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each table, row by row, without the line of dashes."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            found[-1].append([re.sub(r"\\(.)", r"\1", cell.strip()) for cell in cells])
        elif found[-1]:
            found.append([])
    return [table[:1] + table[2:] for table in found if table]


def test_hugging_face_is_told_where_the_splits_that_have_shards_are() -> None:
    said = front_matter(card(COUNTS))
    (config,) = said["configs"]
    assert config["data_files"] == [
        {"split": "train", "path": "train/*.tar"},
        {"split": "test", "path": "test/*.tar"},
    ]
    assert said["task_categories"] == ["image-classification"]
    assert said["tags"] == ["webdataset"]
    assert "license" not in said


def test_hugging_face_is_told_the_classes() -> None:
    def label(dataset: Dataset) -> Any:
        features = front_matter(card(dataset))["dataset_info"]["features"]
        return {feature["name"]: feature["dtype"] for feature in features}["cls"]

    assert label(COUNTS) == "int64"
    assert label(NAMES) == {"class_label": {"names": dict(zip("012", NAMES.classes, strict=True))}}


@pytest.mark.parametrize(
    ("samples", "category"),
    [
        (1, "n<1K"),
        (999, "n<1K"),
        (1_000, "1K<n<10K"),
        (535_234, "100K<n<1M"),
        (10**12 - 1, "100B<n<1T"),
        (10**12, "n>1T"),
    ],
)
def test_hugging_face_is_told_the_size(samples: int, category: str) -> None:
    dataset = dataset_of([0], {"train": [[samples]]})
    text = make_cards(dataset, catalog_of(COUNTS))[README].decode()
    assert front_matter(text)["size_categories"] == [category]


def test_the_classes_are_counted_by_split() -> None:
    assert tables(card(COUNTS))[0] == [
        ["count", "train", "test"],
        ["0", "4", "0"],
        ["1", "2", "1"],
        ["2", "4", "0"],
        ["total", "10", "1"],
    ]


def test_of_many_classes_the_largest_are_shown() -> None:
    dataset = dataset_of([f"class {n}" for n in range(1500)], {"train": [range(1500)]})
    text = make_cards(dataset, catalog_of(COUNTS))[README].decode()
    rows = tables(text)[0]
    assert [row[0] for row in rows[1:3]] == ["class 1499", "class 1498"]
    assert len(rows) == 1 + 30 + 1
    assert "The 30 largest of 1,500 classes" in text


def test_reasons_that_differ_in_their_details_are_one() -> None:
    (left_out,) = [table for table in tables(card(COUNTS, LEFT_OUT)) if table[0][-1] == "why"]
    assert left_out[1:] == [
        ["3", "quarantined", "metadata/….json: no JSON"],
        ["1", "excluded", "count is above --max-count 5"],
        ["1", "orphan-image", "no metadata/….json"],
    ]
    assert "Left out" not in card(COUNTS)


def test_the_rarest_reasons_are_counted_together() -> None:
    others = [
        {"id": f"x{n}{i}", "status": "excluded", "reason": f"reason {n}"}
        for n in range(14)
        for i in range(20 - n)
    ]
    (left_out,) = [table for table in tables(card(COUNTS, others)) if table[0][-1] == "why"]
    assert left_out[1] == ["20", "excluded", "reason 0"]
    assert left_out[11:] == [["34", "", "other reasons"]]


def test_photos_that_were_converted_are_counted() -> None:
    catalog = catalog_of(COUNTS)
    notes = ["grey, stored as RGB", *[None] * (len(catalog) - 1)]
    at = catalog.column_names.index("reason")
    text = make_cards(COUNTS, catalog.set_column(at, "reason", [notes]))[README].decode()
    assert [["photos", "how"], ["1", "grey, stored as RGB"]] in tables(text)
    assert "stored as they are, but for those below" in text
    assert "stored as they are. " in card(COUNTS)


def test_sizes_are_those_of_the_samples_in_the_source() -> None:
    large = {"id": "large", "status": "quarantined", "width": 9000, "height": 9000, "bytes": 9**9}
    (sizes,) = [table for table in tables(card(COUNTS, [large])) if "median" in table[0]]
    assert sizes[1:] == [
        ["width, pixels", "100", "110", "120"],
        ["height, pixels", "50", "60", "70"],
        ["file, bytes", "1,000", "1,010", "1,020"],
    ]
    assert "--resize 256" in card(dataset_of(range(3), {"train": [[1, 1, 1]]}, resize="256"))


def test_the_card_says_what_was_never_divided_between_splits() -> None:
    assert "before and after a pick, are in one split" in card(COUNTS)
    assert "Photos with the same bin id are in one split." in card(NAMES)
    alone = dataset_of(range(3), {"train": [[1, 1, 1]]}, group="none", split=[1 / 3, 1 / 3, 1 / 3])
    assert "near-copies may be in different splits" in card(alone)
    assert "33.33% train" in card(alone)


NAME = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).map(
    lambda text: text.strip() or "x"
)


@settings(max_examples=30)
@given(st.lists(NAME, min_size=1, max_size=5, unique=True), NAME)
def test_any_names_and_reasons_are_text(names: list[str], reason: str) -> None:
    dataset = dataset_of(names, {"train": [[1] * len(names)]})
    text = card(dataset, [{"id": "1", "status": "excluded", "reason": reason}])
    features = front_matter(text)["dataset_info"]["features"]
    label = next(feature for feature in features if feature["name"] == "cls")
    assert [*label["dtype"]["class_label"]["names"].values()] == names
    classes, *_ = tables(text)
    assert [row[0] for row in classes[1:-1]] == [" ".join(name.split()) for name in names]
    (left_out,) = [table for table in tables(text) if table[0][-1] == "why"]
    assert left_out[1] == ["1", "excluded", " ".join(reason.split())]
