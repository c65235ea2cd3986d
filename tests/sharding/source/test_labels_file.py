"""Labels are read from whatever table people have, and what is wrong with it is said in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from bintally.dataset.catalog import encode_catalog, read_catalog
from bintally.errors import UsageError
from sharding.source.labels_file import RESERVED, Labels, read_labels
from sharding.source.rows import source_schema
from tests.sharding.source.tables import FORMS, written


def read(folder: Path, data: bytes, name: str = "labels.csv", **how: Any) -> Labels:
    (folder / name).write_bytes(data)
    return read_labels(folder / name, **how)


def column(labels: Labels, name: str) -> list[Any]:
    values: list[Any] = labels.table[name].to_pylist()
    return values


COLUMNS: dict[str, list[Any]] = {
    "path": ["./a/1.jpg", "b.jpg", "ü,\n.png"],
    "label": [3, None, 0],
    "group": ["007", None, "7"],
    "split": ["val", "", "Train"],
    "skus": [["b", "a", "b"], None, ["c"]],
    "zip": ["00012", "12345", None],
    "weight": [1.5, None, -2.0],
    "items": [1, None, 2**60],
    "checked": [True, False, None],
    "taken": ["2024-01-31", None, "2024-02-01T10:00:00"],
    "note": ['a "quoted", one', None, "ü"],
}


@pytest.mark.parametrize("form", FORMS)
def test_equal_values_are_equal_labels_from_every_kind_of_file(form: str, tmp_path: Path) -> None:
    labels = read(tmp_path, written(form, COLUMNS), f"labels.{form}")
    assert (labels.key_column, labels.by_id) == ("path", False)
    assert labels.keys.to_pylist() == ["a/1.jpg", "b.jpg", "ü,\n.png"]
    assert column(labels, "count") == [3, None, 0]
    assert column(labels, "reason") == [None, "label is empty", None]
    assert column(labels, "group") == ["007", None, "7"]
    assert column(labels, "split") == ["validation", None, "train"]
    assert column(labels, "skus") == [["a", "b"], None, ["c"]]
    extras = ("zip", "weight", "items", "checked", "taken", "note")
    assert labels.extras == {name: name for name in extras}
    assert {name: column(labels, name) for name in extras} == {n: COLUMNS[n] for n in extras}
    assert labels.table.schema.field("items").type == pa.int64()
    for field in labels.table.schema:
        if field.name in source_schema().names:
            assert field.type == source_schema().field(field.name).type


@pytest.mark.parametrize("form", FORMS)
def test_names_are_names_in_every_kind_of_file(form: str, tmp_path: Path) -> None:
    data = written(form, {"id": ["00012", "13"], "class": ["cat", " dog "]})
    labels = read(tmp_path, data, f"labels.{form}")
    assert (labels.by_id, labels.keys.to_pylist()) == (True, ["00012", "13"])
    assert column(labels, "label") == ["cat", "dog"]
    assert column(labels, "count") == [None, None]


@pytest.mark.parametrize("name", ["path", "file", "filename", "file_name", "image", "Path", "FILE"])
def test_the_photos_column_may_have_any_usual_name(name: str, tmp_path: Path) -> None:
    labels = read(tmp_path, f"{name},label\na,1\n".encode())
    assert (labels.key_column, labels.by_id) == (name, False)


def test_the_first_of_label_class_and_count_is_the_label_and_others_are_extras(
    tmp_path: Path,
) -> None:
    labels = read(tmp_path, b"count,Class,label,path\n1,2,3,a\n")
    assert column(labels, "count") == [3]
    assert labels.extras == {"labels_count": "count", "Class": "Class"}
    labels = read(tmp_path, b"count,Class,path\n1,2,a\n")
    assert column(labels, "count") == [2]
    labels = read(tmp_path, b"count,path\n1,a\n")
    assert column(labels, "count") == [1]


def test_beside_a_path_an_id_is_an_extra(tmp_path: Path) -> None:
    labels = read(tmp_path, b"id,file,label\n00012,a.jpg,1\n")
    assert labels.keys.to_pylist() == ["a.jpg"]
    assert labels.extras == {"labels_id": "id"}
    assert column(labels, "labels_id") == ["00012"]


def test_names_that_a_catalog_has_are_prefixed_in_it(tmp_path: Path) -> None:
    names = [*read_catalog(encode_catalog(pa.table({}))).column_names, "path", "version"]
    assert {*RESERVED} | {*source_schema().names} >= {*names}
    labels = read(tmp_path, b"file,label,path2,version,width,labels_width\na,1,2,3,4,5\n")
    assert labels.extras == {
        "path2": "path2",
        "labels_version": "version",
        "labels_width": "width",
        "labels_labels_width": "labels_width",
    }


def test_any_column_may_be_the_group_and_stays_what_it_is(tmp_path: Path) -> None:
    data = b"path,label,group,bin\na,1,g,007\nb,2,h, 8\nc,3,i,\n"
    labels = read(tmp_path, data, group="bin")
    assert column(labels, "group") == ["007", "8", None]
    assert labels.extras == {"labels_group": "group", "bin": "bin"}
    assert column(read(tmp_path, data), "group") == ["g", "h", "i"]
    assert column(read(tmp_path, data, group="label"), "group") == ["1", "2", "3"]
    assert column(read(tmp_path, data, group="path"), "group") == ["a", "b", "c"]


@pytest.mark.parametrize("text", ["b a", "b,a", "b; a", "a,,b,", " a\tb a"])
def test_products_are_separated_by_whatever_people_use(text: str, tmp_path: Path) -> None:
    labels = read(tmp_path, f'path\tlabel\tskus\na\t1\t"{text}"\nb\t1\t\n'.encode(), "l.tsv")
    assert column(labels, "skus") == [["a", "b"], None]


def test_numbers_as_ids_and_groups_are_their_digits(tmp_path: Path) -> None:
    data = written("parquet", {"id": [12, 13], "label": [1.0, 2.0], "group": [7, None]})
    labels = read(tmp_path, data, "labels.parquet")
    assert labels.keys.to_pylist() == ["12", "13"]
    assert column(labels, "count") == [1, 2]
    assert column(labels, "group") == ["7", None]


def test_blank_rows_are_no_rows(tmp_path: Path) -> None:
    labels = read(tmp_path, b"path,label\na,1\n,\n\n,\n")
    assert labels.keys.to_pylist() == ["a"]


def test_a_photo_inside_the_table_does_not_name_itself(tmp_path: Path) -> None:
    data = written("jsonl", {"image": [{"path": "x"}], "file_name": ["a.jpg"], "label": [1]})
    labels = read(tmp_path, data, "labels.jsonl")
    assert labels.key_column == "file_name"
    assert labels.extras == {"image": "image"}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"photo,label\na,1\n", "no column names the photo; call it path, .* or id .*'photo'"),
        (b"path,labels\na,1\n", "no column holds the label; call it label, class or count; it has"),
        (b"path,file,label\na,a,1\n", "'path' and 'file' may mean the same; rename all but one"),
        (b"path,label,Label\na,1,2\n", "'label' and 'Label' may mean the same"),
        (b"path;label\na;1\n", "no column names the photo; .*it has 'path;label'"),
        (b"path,label\n,\n", "has no rows"),
        (b"path,label\na,1\n,\n,2\n", r"'path' is empty in row 2 \(without the header and blank"),
        (
            b"path,label,split\na,1,train\nb,1,dev\n",
            "'split' is 'dev' in row 2 .*; it may be train",
        ),
        (b"path,label\na,\xff\n", "line 2: not UTF-8"),
    ],
)
def test_what_cannot_be_read_as_labels_is_told_in_a_line(
    data: bytes, told: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        read(tmp_path, data)
    assert str(caught.value).startswith(str(tmp_path / "labels.csv"))
    assert "\n" not in str(caught.value)


def test_a_group_that_no_column_has_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no column is called 'bin', as --group column:bin has it"):
        read(tmp_path, b"path,label\na,1\n", group="bin")


@pytest.mark.parametrize(
    "columns",
    [
        {"path": ["a"], "label": [[1]]},
        {"path": ["a"], "label": [1], "split": [["train"]]},
        {"path": ["a"], "label": [1], "skus": [[{"x": 1}]]},
        {"path": ["a"], "label": [1], "thumbnail": [b"\xff\xd8"]},
        {"id": [["a"]], "label": [1]},
    ],
)
def test_a_column_of_a_type_that_does_not_fit_is_named(
    columns: dict[str, list[Any]], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"'\w+' is of the type .*; leave it out, or write it"):
        read(tmp_path, written("parquet", columns), "labels.parquet")
