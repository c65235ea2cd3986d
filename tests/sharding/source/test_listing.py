"""A source's objects are listed, or come from a list: S3's inventory, or a table of anybody's."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pytest

from bintally.errors import UsageError
from bintally.storage.opening import open_place
from bintally.storage.place import Entry, Place
from sharding.source.listing import list_source
from tests.sharding.source.tables import FORMS, written

OBJECTS = {"a.jpg": b"1", "b/c d+é.png": b"22", "b/%41.jpg": b"333", "labels.csv": b"4444"}


def fill(place: Place) -> Place:
    for path, data in OBJECTS.items():
        place.put(path, data)
    return place


def entries(table: pa.Table) -> set[Entry]:
    return {Entry(row["path"], row["bytes"], row["version"]) for row in table.to_pylist()}


def test_what_is_listed_is_what_the_place_has(tmp_path: Path, s3: str) -> None:
    for place in (fill(open_place(tmp_path)), fill(open_place(f"{s3}/photos"))):
        table = list_source(place)
        assert table.schema.names == ["path", "bytes", "version"]
        assert entries(table) == {*place.entries()}
    assert len(list_source(open_place(f"{s3}/nothing"))) == 0


def test_a_long_listing_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharding.source.listing.AT_A_TIME", 7)
    for number in range(50):
        (tmp_path / f"{number}.jpg").touch()
    assert entries(list_source(open_place(tmp_path))) == {*open_place(tmp_path).entries()}


def test_a_name_that_is_not_utf8_is_written_out_and_has_no_version(tmp_path: Path) -> None:
    for name in (b"a.jpg", b"caf\xe9.jpg", "é.jpg".encode()):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    rows = {row["path"]: row["version"] for row in list_source(open_place(tmp_path)).to_pylist()}
    assert {path: version is None for path, version in rows.items()} == {
        "a.jpg": False,
        "caf\\xe9.jpg": True,
        "é.jpg": False,
    }


def test_a_list_may_be_any_table(s3: str, tmp_path: Path) -> None:
    place = fill(open_place(f"{s3}/photos"))
    listed = [*place.entries()]
    below = [f"./{entry.path}" for entry in listed]
    keys = [*(f"photos/{entry.path}" for entry in listed), "elsewhere/a.jpg"]
    for form in FORMS:
        for name, paths in (("path", below), ("Key", keys)):
            columns: dict[str, list[Any]] = {
                name: paths,
                "Size": [entry.size_bytes for entry in listed],
                "ETag": [f'"{entry.version}"' for entry in listed],
            }
            columns = {n: (values * 2)[: len(paths)] for n, values in columns.items()}
            (tmp_path / f"list.{form}").write_bytes(written(form, columns))
            table = list_source(place, str(tmp_path / f"list.{form}"))
            assert entries(table) == {*listed}
    for entry in entries(table):
        assert place.fetch(entry) == OBJECTS[entry.path]


def test_a_list_without_versions_is_enough(s3: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,bytes\na.jpg,1.0\n")
    for place in (fill(open_place(tmp_path / "photos")), fill(open_place(s3))):
        (entry,) = entries(list_source(place, str(tmp_path / "list.csv")))
        assert entry == Entry("a.jpg", 1, "")
        assert place.fetch(entry) == b"1"


FIELDS = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag"


def inventory(form: str, bucket: str, objects: Sequence[Entry]) -> dict[str, bytes]:
    """An inventory as S3 delivers it, by key in its destination: of a bucket of versions."""
    rows: list[list[Any]] = [
        [bucket, o.path, "v2", True, False, o.size_bytes, "2024-01-31T00:00:00Z", o.version]
        for o in objects
    ]
    for key, *what in (
        ("photos/a.jpg", "v1", False, False, 99, "2023-01-31T00:00:00Z", "older"),
        ("photos/gone.jpg", "v1", True, True, None, "2023-01-31T00:00:00Z", None),
        ("photos/folder/", "v1", True, False, 0, "2023-01-31T00:00:00Z", "empty"),
    ):
        rows.append([bucket, key, *what])
    parts = {}
    for number, some in enumerate((rows[:2], rows[2:])):
        path = f"inventory/{bucket}/all/data/{number}"
        if form == "CSV":
            for row in some:
                row[1] = quote_plus(row[1], safe="/")
            lines = [",".join(f'"{cell(value)}"' for value in row) for row in some]
            parts[f"{path}.csv.gz"] = gzip.compress("\n".join(lines).encode(), mtime=0)
        else:
            columns = dict(zip(PARQUET_FIELDS, map(list, zip(*some, strict=True)), strict=True))
            parts[f"{path}.parquet"] = written("parquet", columns)
    manifest = {
        "sourceBucket": bucket,
        "destinationBucket": f"arn:aws:s3:::{bucket}",
        "version": "2016-11-30",
        "fileFormat": form,
        "fileSchema": FIELDS if form == "CSV" else "message s3.inventory { … }",
        "files": [{"key": path, "size": len(data)} for path, data in parts.items()],
    }
    return parts | {MANIFEST.format(bucket): json.dumps(manifest).encode()}


PARQUET_FIELDS = ["bucket", "key", "version_id", "is_latest", "is_delete_marker", "size"]
PARQUET_FIELDS += ["last_modified_date", "e_tag"]
MANIFEST = "inventory/{}/all/2024-02-01T00-00Z/manifest.json"


def cell(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


@pytest.mark.parametrize("form", ["CSV", "Parquet"])
def test_an_inventory_is_a_list(form: str, s3: str, tmp_path: Path) -> None:
    bucket, place = open_place(s3), open_place(f"{s3}/photos")
    for path, data in OBJECTS.items():
        bucket.put(f"photos/{path}", data)
    bucket.put("elsewhere/x.jpg", b"x")
    name = s3.removeprefix("s3://")
    listed = {*place.entries()}
    for path, data in inventory(form, name, [*bucket.entries()]).items():
        bucket.put(path, data)
        open_place(tmp_path).put(path, data)
    for where in (s3, str(tmp_path)):
        assert entries(list_source(place, f"{where}/{MANIFEST.format(name)}")) == listed
    for entry in listed:
        assert place.fetch(entry) == OBJECTS[entry.path]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("list.csv", "name,size\na,1\n", "has no column path or key; it has 'name', 'size'"),
        ("list.csv", "path,length\na,1\n", "has no column size or bytes; it has 'path', 'length'"),
        ("list.csv", "path,size\na,1\nb,\n", r"row 2 \(without the header\) .*: 'b', None"),
        ("list.csv", "path,size\na,-1\n", "no number of bytes: 'a', '-1'"),
        ("list.csv", "path,size\n,1\n", "has no path"),
        ("list.csv", "path,size\na,1\na,2\n", "lists 'a' twice, and not as equal"),
        ("list.csv", "path,size\n../a,1\n", r"lists '../a', which is not below"),
        ("list.csv", "path,size\nfolder/,0\n", "lists no object of"),
        ("list.jsonl", '{"path": ["a"], "size": 1}', "a column is of the type list"),
        ("manifest.json", "{}", "not the manifest of an S3 Inventory"),
        ("manifest.json", "[", "not the manifest of an S3 Inventory"),
        ("none.csv", None, "no such file"),
    ],
)
def test_a_list_that_cannot_be_used_is_told_in_a_line(
    name: str, text: str | None, told: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=told) as caught:
        list_source(open_place(tmp_path), str(tmp_path / name))
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sourceBucket": "another"}, "is the inventory of s3://another, and not of s3://"),
        ({"fileFormat": "ORC"}, "has the format ORC; make the inventory as CSV or Parquet"),
        ({"fileSchema": "Bucket, Key"}, "8 values for 2 columns"),
        ({"fileSchema": FIELDS.replace("Size", "StorageClass")}, "let the inventory have .* Size"),
        ({"files": [{"key": "gone.csv.gz"}]}, "gone.csv.gz: no such file"),
    ],
)
def test_an_inventory_that_does_not_fit_is_told_in_a_line(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    objects = [Entry(f"photos/{number}.jpg", 1, "v") for number in range(3)]
    for path, data in inventory("CSV", "mine", objects).items():
        changed = json.dumps(json.loads(data) | changes).encode() if ".json" in path else data
        open_place(tmp_path).put(path, changed)
    with pytest.raises(UsageError, match=told) as caught:
        list_source(open_place("s3://mine/photos"), str(tmp_path / MANIFEST.format("mine")))
    assert "\n" not in str(caught.value)


def test_what_is_listed_twice_alike_is_listed_once(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,size\na,1\nb,2\na,1\n")
    table = list_source(open_place(tmp_path), str(tmp_path / "list.csv"))
    assert sorted(table["path"].to_pylist()) == ["a", "b"]
