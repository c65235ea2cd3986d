"""Folders are classes, below what all photos lie in, and splits where they are called so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bintally.errors import UsageError
from bintally.storage.opening import open_place
from sharding.source.class_folders import read_class_folders
from tests.sharding.source.tables import listing_of

SOURCE = open_place("photos")


def read(*paths: str) -> dict[str, Any]:
    """By path: the class, with the split where there is one, or the reason."""
    rows = read_class_folders(listing_of(*paths), SOURCE)
    found = {}
    for row in rows.table.to_pylist():
        label = row["label"] if row["count"] is None else row["count"]
        assert (row["status"] == "sharded") == (label is not None) == (row["reason"] is None)
        assert row["status"] in ("sharded", "quarantined")
        found[row["path"]] = row["reason"] or ((label, row["split"]) if row["split"] else label)
    return found


def test_the_first_folder_is_the_class() -> None:
    assert read("cat/1.jpg", "dog/1.PNG", "dog/old/2.jpg", "dog/notes.txt", "README.md") == {
        "cat/1.jpg": "cat",
        "dog/1.PNG": "dog",
        "dog/old/2.jpg": "dog",
    }


def test_folders_named_with_whole_numbers_are_counts() -> None:
    assert read("0/a.jpg", "12/b.jpg") == {"0/a.jpg": 0, "12/b.jpg": 12}
    assert read("0/a.jpg", "many/b.jpg") == {"0/a.jpg": "0", "many/b.jpg": "many"}
    assert read("0/a.jpg", "-1/b.jpg")["-1/b.jpg"] == "label is -1, below zero"


def test_folders_that_hold_all_photos_are_no_classes() -> None:
    assert read("data/photos/cat/1.jpg", "data/photos/dog/2.jpg", "data/3.jpg", "4.jpg") == {
        "data/photos/cat/1.jpg": "cat",
        "data/photos/dog/2.jpg": "dog",
        "data/3.jpg": "in no class's folder",
        "4.jpg": "in no class's folder",
    }
    assert read("cat/1.jpg", "cat/2.jpg") == {"cat/1.jpg": "cat", "cat/2.jpg": "cat"}


@pytest.mark.parametrize("validation", ["val", "validation", "Val"])
def test_folders_of_splits_prescribe_them(validation: str) -> None:
    assert read(
        "set/train/cat/1.jpg",
        f"set/{validation}/dog/x/2.jpg",
        "set/test/cat/3.jpg",
        "set/test/4.jpg",
        "set/extra/cat/5.jpg",
    ) == {
        "set/train/cat/1.jpg": ("cat", "train"),
        f"set/{validation}/dog/x/2.jpg": ("dog", "validation"),
        "set/test/cat/3.jpg": ("cat", "test"),
        "set/test/4.jpg": "in no class's folder",
        "set/extra/cat/5.jpg": "in no split's folder, where others are",
    }


def test_a_single_split_is_a_folder_like_others() -> None:
    """Else nothing would be left to evaluate on."""
    assert read("train/cat/1.jpg", "train/dog/2.jpg") == {
        "train/cat/1.jpg": "cat",
        "train/dog/2.jpg": "dog",
    }
    assert read("train/1.jpg", "test/2.jpg") == {"train/1.jpg": "train", "test/2.jpg": "test"}


def test_what_is_no_photo_of_ours_is_put_aside() -> None:
    assert read("cat/1.jpg", "dog/2.gif", ".cache/3.jpg", "__MACOSX/cat/._1.jpg") == {
        "cat/1.jpg": "cat",
        "dog/2.gif": "named as a GIF; a photo is a JPEG, PNG or WebP",
        ".cache/3.jpg": "in a hidden folder",
        "__MACOSX/cat/._1.jpg": "in a hidden folder",
    }
    listing = listing_of("cat/1.jpg", "cat/b\\xe9.jpg")
    listing = listing.set_column(2, "version", pa.array(["v", None]))
    reasons = read_class_folders(listing, SOURCE).table["reason"].to_pylist()
    assert reasons == [None, "its name is not UTF-8"]


@pytest.mark.parametrize("paths", [[], ["a.jpg", "b.jpg"], ["notes.txt"], ["cat/1.gif"]])
def test_where_no_photo_has_a_class_the_three_ways_are_told(paths: list[str]) -> None:
    with pytest.raises(UsageError, match=r"^photos: .*metadata/<id>.json.*--labels FILE.*<class>"):
        read(*paths)


def test_the_json_is_the_label_and_the_identity_does_not_depend_on_the_order() -> None:
    listing = listing_of("cat/1.jpg", "dog/1.jpg", "dog/2.jpg")
    rows = read_class_folders(listing, SOURCE)
    assert rows.json.take(np.array([2, 0])).get(0) == b'{"label": "dog"}'
    again = read_class_folders(listing.take([2, 0, 1]), SOURCE)
    assert rows.source == again.source
    assert rows.source["images"] == 3
    assert rows.table.equals(again.table)
    other = read_class_folders(listing_of("cat/1.jpg", "dog/1.jpg", "cow/2.jpg"), SOURCE)
    assert other.source != rows.source
