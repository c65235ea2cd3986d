"""What people call a table is read as it is written, or what is wrong with it is said in a line."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bintally.dataset.catalog import encode_catalog, read_catalog
from bintally.errors import UsageError
from bintally.storage.opening import open_place
from sharding.tables.table_file import read_file, read_table_file


def read(folder: Path, name: str, data: bytes) -> pa.Table:
    (folder / name).write_bytes(data)
    return read_table_file(folder / name)


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def test_all_of_csv_is_text_and_what_is_not_written_is_null(tmp_path: Path) -> None:
    data = b'path,n,x\n00012,1.0,"a, ""b"""\n7,,""\n'
    assert read(tmp_path, "a.csv", data).to_pylist() == [
        {"path": "00012", "n": "1.0", "x": 'a, "b"'},
        {"path": "7", "n": None, "x": None},
    ]


def test_csv_as_excel_writes_it(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf path ,label\r\na.jpg,"two\r\nlines"\r\n\r\nb.jpg,\xc3\xa9\r\n'
    table = read(tmp_path, "a.csv", data)
    assert table.to_pylist() == [
        {"path": "a.jpg", "label": "two\r\nlines"},
        {"path": "b.jpg", "label": "é"},
    ]
    assert read(tmp_path, "a.tsv", data.replace(b",", b"\t")) == table
    assert read(tmp_path, "a.CSV.gz", gzip.compress(data, mtime=0)) == table


def test_row_numbers_that_pandas_wrote_are_left_out(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", b",path\n0,a\n1,b\n").to_pydict() == {"path": ["a", "b"]}


def test_a_type_may_show_late_in_a_long_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharding.tables.table_file.BLOCK", 1000)
    numbers = [*map(str, range(2000))]
    table = read(tmp_path, "a.csv", "\n".join(["n", *numbers, "x"]).encode())
    assert table["n"].to_pylist() == [*numbers, "x"]
    lines = [*(f'{{"n": {number}}}' for number in numbers), '{"n": 0.5}']
    table = read(tmp_path, "a.jsonl", "\n".join(lines).encode())
    assert table["n"].to_pylist() == [*range(2000), 0.5]


def test_json_lines_keep_their_types_and_times_stay_as_they_are_written(tmp_path: Path) -> None:
    data = (
        b'\xef\xbb\xbf{"a": 1, "t": "2024-01-31", "n": {"t": ["2024-01-31T10:00:00"], "i": 1}}\r\n'
        b'\n{"b": "x", "t": "2024-02-01 10:00"}'
    )
    for name in ("a.jsonl", "a.ndjson"):
        assert read(tmp_path, name, data).to_pylist() == [
            {
                "a": 1,
                "t": "2024-01-31",
                "n": {"t": ["2024-01-31T10:00:00"], "i": 1},
                "b": None,
            },
            {"a": None, "t": "2024-02-01 10:00", "n": None, "b": "x"},
        ]


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    table = pa.table({"a": pa.array([1], pa.int8()), "b": pa.array(["x"]).dictionary_encode()})
    assert read(tmp_path, "a.parquet", parquet(table)).equals(table)


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.txt", b"a\n1\n", "its name must end in .csv"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"\r\n\r\n", "is empty"),
        ("a.csv", b"a,b\n", "has no rows"),
        ("a.csv", b"a,b", "has no rows"),
        ("a.csv", b"a,b\n1,2\n3\n", r"row 3 \(the header is row 1\): 1 values for 2 columns"),
        ("a.csv", b"a,b\n1,2\n3,4,5\n", r"row 3 .*: 3 values for 2 columns"),
        ("a.csv", b"a,b\n1,\xe9\n", "a.csv, line 2: not UTF-8"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("a.csv", b"PK\x03\x04\0\0\0\0", "not text"),
        ("a.csv", b"a,a\n1,2\n", "two columns named 'a'"),
        ("a.csv", b'a,b\n1,"2\n3,4\n', "inside of a quoted value"),
        ("a.csv", b'"a,b\n1,2\n', "has no rows"),
        ("a.csv.gz", b"a,b\n1,2\n", "not compressed with gzip"),
        ("a.csv.gz", gzip.compress(b"a,b\n1,2\n", mtime=0)[:-9], "damaged"),
        ("a.parquet", b"PAR1....", "no Parquet file"),
        ("a.parquet", parquet(pa.table({"a": [1]}))[:-20], "no Parquet file"),
        ("a.parquet", parquet(pa.table({"a": pa.array([], pa.int8())})), "has no rows"),
        ("a.jsonl", b'{"a": 1}\n{"a"\n', "a.jsonl, line 2: no JSON"),
        ("a.jsonl", b'[{"a": 1}]', "line 1: not an object"),
        ("a.jsonl", b'{"a": 1}\n\n{"a": "x"}', "line 3: 'a' is a text here and a number before"),
        ("a.jsonl", b'{"a": 1, "a": 2}', "line 1: 'a' is there twice"),
        ("a.jsonl", b'{"a": "b"}\n{"a": "\\ud800"}', "line 2: holds half of a surrogate pair"),
        (
            "a.jsonl",
            b'{"a": ' + b"[" * 41 + b"]" * 41 + b"}",
            "'a' is nested deeper than 40 levels",
        ),
        ("a.jsonl", b'{"a": ' + b"[" * 3000 + b"]" * 3000 + b"}", "'a' is nested deeper"),
        ("a.jsonl", b'{"a": "\xe9"}', "line 1: not UTF-8"),
        ("a.jsonl", b"[" * 100_000, "line 1: no JSON"),
    ],
)
def test_what_is_no_table_is_told_in_a_line(
    name: str, data: bytes, told: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        read(tmp_path, name, data)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_whatever_may_be_nested_fits_a_catalog(tmp_path: Path) -> None:
    table = read(tmp_path, "a.jsonl", b'{"a": ' + b"[" * 40 + b"1" + b"]" * 40 + b"}")
    data = encode_catalog(table.append_column("id", [["x"]]))
    assert read_catalog(data)["a"].to_pylist() == table["a"].to_pylist()


def test_a_quote_in_the_middle_of_a_value_is_a_quote(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", b'a,b\n5" disk,1\n').to_pydict() == {
        "a": ['5" disk'],
        "b": ["1"],
    }


def test_a_file_may_lie_on_s3(s3: str) -> None:
    open_place(f"{s3}/some").put("labels.csv", b"a\n1\n")
    assert read_table_file(f"{s3}/some/labels.csv").to_pydict() == {"a": ["1"]}
    open_place(s3).put("top.csv", b"a\n2\n")
    assert read_table_file(f"{s3}/top.csv").to_pydict() == {"a": ["2"]}
    with pytest.raises(UsageError, match=r"^s3://.*/none.csv: no such file$"):
        read_table_file(f"{s3}/none.csv")


def test_a_file_that_cannot_be_had_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_file(tmp_path / "none.csv")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_file(tmp_path)
    for name in ("s3://bucket", "s3://bucket/folder/"):
        with pytest.raises(UsageError, match="names no file"):
            read_file(name)
