"""Every photo finds the row that speaks of it, and what does not fit together has its reason."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bintally.errors import UsageError
from bintally.storage.opening import open_place
from sharding.source.labelled import read_labelled
from sharding.source.labels_file import read_labels
from sharding.source.rows import SourceRows, source_schema
from tests.sharding.source.tables import FORMS, listing_of, written

SOURCE = open_place("photos")


def rows_of(
    folder: Path, listing: pa.Table, columns: dict[str, list[Any]], form: str = "csv", **how: Any
) -> SourceRows:
    (folder / f"labels.{form}").write_bytes(written(form, columns))
    return read_labelled(listing, read_labels(folder / f"labels.{form}", **how), SOURCE)


def by_id(rows: SourceRows) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in rows.table.to_pylist()}


def outcomes(rows: SourceRows) -> dict[str, tuple[str, Any]]:
    """By path, or id where there is none: the status, and label or reason."""
    return {
        row["path"] or row["id"]: (
            row["status"],
            row["reason"] or (row["label"] if row["count"] is None else row["count"]),
        )
        for row in rows.table.to_pylist()
    }


def test_photos_find_their_rows_wherever_they_lie(tmp_path: Path) -> None:
    listing = listing_of("b/2.PNG", "a/1.jpg", "a/3.jpeg", "c d.webp", "notes.txt", "labels.csv")
    rows = rows_of(
        tmp_path,
        listing,
        {"path": ["a/1.jpg", "./b/2.PNG", "a/3.jpeg", "c d.webp"], "label": [0, 1, 2, 3]},
    )
    assert rows.table.schema.names[: len(source_schema())] == source_schema().names
    assert rows.table.schema.field("count").type == pa.int32()
    ids = rows.table["id"].to_pylist()
    assert ids == sorted(ids)
    assert ids[:3] == ["1", "2", "3"]
    assert outcomes(rows) == {
        "a/1.jpg": ("sharded", 0),
        "b/2.PNG": ("sharded", 1),
        "a/3.jpeg": ("sharded", 2),
        "c d.webp": ("sharded", 3),
    }
    assert {k: v for k, v in rows.source.items() if k != "sha256"} == {"images": 4, "labels": 4}


def test_what_does_not_fit_together_has_a_status_and_a_reason(tmp_path: Path) -> None:
    listing = listing_of(*(f"{name}.jpg" for name in "abcdef"), "x.gif", "y.tif", "n.txt", "o.txt")
    said = [
        ("a.jpg", 1),
        ("c.jpg", 2),
        ("c.jpg", 2),
        ("d.jpg", 3),
        ("d.jpg", 4),
        ("e.jpg", None),
        ("f.jpg", -7),
        ("gone.jpg", 1),
        ("x.gif", 1),
        ("n.txt", 1),
    ]
    paths, values = zip(*said, strict=True)
    labels = {"path": [*paths], "label": [*values]}
    assert outcomes(rows_of(tmp_path, listing, labels)) == {
        "a.jpg": ("sharded", 1),
        "b.jpg": ("orphan-image", "no row of the labels names it"),
        "c.jpg": ("sharded", 2),
        "d.jpg": ("quarantined", "rows contradict each other: 3 and 4"),
        "e.jpg": ("quarantined", "label is empty"),
        "f.jpg": ("quarantined", "label is -7, below zero"),
        "gone.jpg": ("orphan-metadata", "the source has no such photo"),
        "x.gif": ("quarantined", "named as a GIF; a photo is a JPEG, PNG or WebP"),
        "y.tif": ("quarantined", "named as a TIFF; a photo is a JPEG, PNG or WebP"),
        "n.txt": ("quarantined", "not named .jpg, .jpeg, .png or .webp"),
    }


def test_a_name_that_is_not_utf8_is_put_aside(tmp_path: Path) -> None:
    listing = pa.concat_tables([listing_of("a.jpg"), listing_of("b\\xe9.jpg")])
    listing = listing.set_column(2, "version", pa.array(["v", None]))
    rows = by_id(rows_of(tmp_path, listing, {"path": ["a.jpg", "b\\xe9.jpg"], "label": [1, 2]}))
    assert rows["a"]["status"] == "sharded"
    assert rows["b\\xe9.jpg"]["reason"] == "its name is not UTF-8"


def test_an_id_is_a_name_or_a_path_without_the_extension(tmp_path: Path) -> None:
    listing = listing_of("a/1.jpg", "b/1.jpg", "b/2.PNG", "3.jpg", "x/3.jpg", "c/4.jpg", "c/4.png")
    keys = ["a/1", "b/1", "2", "3", "4", "c/9", "9"]
    rows = rows_of(tmp_path, listing, {"id": keys, "label": list("abcdefg")})
    doubtful = ("quarantined", "other photos have the name by which the labels call it")
    assert outcomes(rows) == {
        "a/1.jpg": ("sharded", "a"),
        "b/1.jpg": ("sharded", "b"),
        "b/2.PNG": ("sharded", "c"),
        "3.jpg": ("sharded", "d"),
        "x/3.jpg": ("orphan-image", "no row of the labels names it"),
        "c/4.jpg": doubtful,
        "c/4.png": doubtful,
        "c/9": ("orphan-metadata", "the source has no such photo"),
        "9": ("orphan-metadata", "the source has no such photo"),
    }


def test_a_row_without_a_photo_never_takes_a_photos_id(tmp_path: Path) -> None:
    listing = listing_of("x/1.jpg", "2.jpg")
    rows = rows_of(tmp_path, listing, {"path": ["1", "1 (2)", "2.jpg"], "label": [1, 2, 3]})
    assert {id_: row["status"] for id_, row in by_id(rows).items()} == {
        "1": "orphan-image",
        "1 (2)": "orphan-metadata",
        "1 (3)": "orphan-metadata",
        "2": "sharded",
    }


COLUMNS: dict[str, list[Any]] = {
    "path": [f"{'abc'[i % 3]}/{i}.jpg" for i in range(30)] + ["a/0.jpg", "a/0.jpg", "a/3.jpg"],
    "label": [i % 5 for i in range(30)] + [0, 0, 4],
    "group": [f"g{i // 4}" for i in range(30)] + ["later", None, None],
    "split": [None] * 30 + ["test", None, None],
    "skus": [["y", "x"] if i % 2 else None for i in range(33)],
    "zip": [f"{i:05d}" for i in range(33)],
    "weight": [i / 4 if i % 7 else None for i in range(33)],
    "taken": [f"2024-01-{i % 28 + 1:02d}" for i in range(33)],
}
LISTING = listing_of(*sorted({*COLUMNS["path"]}), "left.jpg")


@pytest.mark.parametrize("form", FORMS)
def test_a_source_is_the_same_whatever_file_its_labels_are_in(form: str, tmp_path: Path) -> None:
    as_csv = rows_of(tmp_path, LISTING, COLUMNS)
    rows = rows_of(tmp_path, LISTING, COLUMNS, form)
    assert rows.source == as_csv.source
    assert rows.table.equals(as_csv.table)
    everything = np.arange(len(rows.table))
    for number in range(len(everything)):
        assert rows.json.take(everything).get(number) == as_csv.json.take(everything).get(number)


@pytest.mark.parametrize("seed", range(5))
def test_no_order_of_anything_matters(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)

    def shuffled(length: int) -> list[int]:
        return draw.sample(range(length), length)

    listing = LISTING.take(shuffled(len(LISTING)))
    cut = draw.randrange(len(listing))
    listing = pa.concat_tables([listing[:cut], listing[cut:]])
    order = shuffled(len(COLUMNS["path"]))
    columns = {name: [values[i] for i in order] for name, values in COLUMNS.items()}
    rows, again = rows_of(tmp_path, LISTING, COLUMNS), rows_of(tmp_path, listing, columns)
    assert again.source == rows.source
    assert again.table.equals(rows.table)


@pytest.mark.parametrize(
    ("column", "value"),
    [("label", 7), ("group", "other"), ("split", "test"), ("zip", "0"), ("skus", ["z"])],
)
def test_another_value_makes_another_source(column: str, value: Any, tmp_path: Path) -> None:
    changed = COLUMNS | {column: [value, *COLUMNS[column][1:]]}
    if column != "label":  # What the other rows of a/0.jpg say is less than that.
        changed = {name: values[:30] for name, values in changed.items()}
    whole = rows_of(
        tmp_path, LISTING, {name: v[: len(changed["path"])] for name, v in COLUMNS.items()}
    )
    assert rows_of(tmp_path, LISTING, changed).source["sha256"] != whole.source["sha256"]


def test_another_size_makes_another_source_and_another_version_does_not(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {"path": ["a.jpg"], "label": [1]}
    one = rows_of(tmp_path, listing_of("a.jpg"), columns)
    larger = rows_of(tmp_path, listing_of("a.jpg", size=101), columns)
    elsewhere = listing_of("a.jpg").set_column(2, "version", pa.array(["another"]))
    assert larger.source != one.source == rows_of(tmp_path, elsewhere, columns).source


def test_a_samples_json_is_its_row(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "file_name": ["b.jpg", "a.jpg"],
        "ürsprung": ["Zoë", None],
        "class": ["cat", "dog"],
        "id": [7, 8],
        "box": [[1.5, float("nan")], None],
        "camera": [{"lens": None, "iso": 100}, None],
    }
    rows = rows_of(tmp_path, listing_of("a.jpg", "b.jpg", "c.jpg"), columns, "parquet")
    taken = rows.json.take(np.array([1, 0]))
    assert taken.get(0).decode() == (
        '{"label": "cat", "ürsprung": "Zoë", "id": 7, "box": [1.5, null], "camera": {"iso": 100}}'
    )
    assert json.loads(taken.get(1)) == {"label": "dog", "id": 8}
    assert rows.table["labels_id"].to_pylist() == [8, 7, None]


@pytest.mark.parametrize(
    ("paths", "key", "told"),
    [
        (["a.txt"], "a.jpg", "^photos: no photos here: nothing is named .jpg, .jpeg, .png or"),
        (["a.jpg"], "b.jpg", "rows names an object of photos: the first 'path' is 'b.jpg', and a"),
    ],
)
def test_where_nothing_comes_together_that_is_told(
    paths: list[str], key: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=told):
        rows_of(tmp_path, listing_of(*paths), {"path": [key], "label": [1]})
