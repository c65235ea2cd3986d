"""A table as people keep one: CSV, TSV, Parquet or JSON lines, here or on S3."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bintally.errors import UsageError
from bintally.storage.opening import open_place

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["is_untyped", "read_file", "read_table_file"]


def read_file(file: str | os.PathLike[str], *, anonymous: bool = False) -> bytes:
    """A file's bytes; `file` is a path or s3://BUCKET/KEY. `UsageError` if it cannot be had."""
    name = os.fspath(file)
    try:
        if name.startswith("s3://"):
            folder, _, key = name.rpartition("/")
            if not key or folder == "s3:/":
                raise UsageError(f"{name}: names no file; write s3://BUCKET/KEY")
            return open_place(folder, anonymous=anonymous).get(key)
        return Path(name).read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"{name}: no such file") from error
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror}") from error


def is_untyped(file: str | os.PathLike[str]) -> bool:
    """Whether a file is of a kind in which all is text: CSV or TSV."""
    return _suffix(os.fspath(file)) in (".csv", ".tsv")


def _suffix(name: str) -> str:
    return Path(name.lower().removesuffix(".gz")).suffix


def read_table_file(
    file: str | os.PathLike[str], *, anonymous: bool = False, header: str = ""
) -> pa.Table:
    """The columns of a file of a kind in `READERS`, which may be compressed: `labels.csv.gz`.

    Of CSV and TSV all columns are text, null where nothing is written: whether `00012` is a number
    is for whoever knows the column to say. Names of columns come without the space around them;
    columns without a name, which pandas writes for its row numbers, are left out. `header` is the
    first line of a CSV file that lacks it.

    Raises `UsageError`, with file and line where there is one, for what is no such file, has no
    rows, or has two columns of one name.
    """
    name = os.fspath(file)
    suffix = _suffix(name)
    if suffix not in READERS:
        raise UsageError(f"{name}: not a table; its name must end in {', '.join(READERS)}")
    data = read_file(file, anonymous=anonymous)
    if name.lower().endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"{name}: damaged, or not compressed with gzip") from error
    if not data.strip():
        raise UsageError(f"{name}: is empty")
    table = READERS[suffix](f"{header}\n".encode() + data if header else data, name)
    named = [column.strip() for column in table.column_names]
    table = table.rename_columns(named).select([i for i, column in enumerate(named) if column])
    for column in table.column_names:
        if named.count(column) > 1:
            raise UsageError(f"{name}: has two columns named {column!r}; rename one")
    if not table.num_rows or not table.num_columns:
        raise UsageError(f"{name}: has no rows")
    return table


BLOCK = 2**24
"""Bytes that are parsed at a time. No row may be longer."""


def _read_csv(data: bytes, name: str, delimiter: str = ",") -> pa.Table:
    import pyarrow as pa

    _check_text(data, name)
    try:
        table = _parse_csv(data, delimiter)
    except (pa.ArrowInvalid, csv.Error) as error:
        raise UsageError(f"{name}: {_why_no_csv(data, delimiter, error)}") from error
    if data.count(b'"') % 2:
        # An open quote swallows what follows, be it half of the file: also a row put after it.
        row = delimiter.join("0" * max(1, table.num_columns)).encode()
        if _parse_csv(data + b"\n" + row + b"\n", delimiter).num_rows == table.num_rows:
            raise UsageError(f"{name}: ends inside of a quoted value; a quote is not closed")
    return table


def _parse_csv(data: bytes, delimiter: str, *, threads: bool = True) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    lines = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline="")
    header = next(filter(None, csv.reader(lines, delimiter=delimiter)), [])
    return arrow_csv.read_csv(
        io.BytesIO(data),
        arrow_csv.ReadOptions(block_size=BLOCK, use_threads=threads),
        arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )


def _why_no_csv(data: bytes, delimiter: str, error: Exception) -> str:
    import pyarrow as pa

    reason = str(error)
    try:  # One thread alone knows the number of a row.
        _parse_csv(data, delimiter, threads=False)
    except (pa.ArrowInvalid, csv.Error) as again:
        reason = str(again)
    if "Empty CSV" in reason:
        return "has no rows"
    found = re.search(r"(?:Row #(\d+): )?Expected (\d+) columns, got (\d+)", reason)
    if found is None:
        return reason.partition("\n")[0]
    row, expected, got = found.groups()
    where = f"row {row} (the header is row 1)" if row else "a row"
    return f"{where}: {got} values for {expected} columns"


def _read_tsv(data: bytes, name: str) -> pa.Table:
    return _read_csv(data, name, "\t")


def _read_parquet(data: bytes, name: str) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(io.BytesIO(data)).replace_schema_metadata(None)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{name}: no Parquet file, or a damaged one: {reason}") from error


def _read_json_lines(data: bytes, name: str) -> pa.Table:
    import pyarrow as pa
    from pyarrow import json as arrow_json

    data = data.removeprefix(BYTE_ORDER_MARK)
    _check_text(data, name)
    reading = arrow_json.ReadOptions(block_size=BLOCK)
    try:
        table = arrow_json.read_json(io.BytesIO(data), reading)
        for field in table.schema:
            if str(field.type).count("<") > DEEPEST:
                raise UsageError(f"{name}: {field.name!r} is nested deeper than {DEEPEST} levels")
        texts = pa.schema([f.with_type(kind) for f in table.schema if (kind := _as_text(f.type))])
        if len(texts):
            # What looks like a time was read as one, and how it was written would be lost.
            parsing = arrow_json.ParseOptions(explicit_schema=texts)
            table = arrow_json.read_json(io.BytesIO(data), reading, parsing).select(
                table.column_names
            )
    except pa.ArrowInvalid as error:
        raise UsageError(f"{name}{_why_no_json_lines(data, error)}") from error
    return table


def _as_text(kind: pa.DataType) -> pa.DataType | None:
    """A type with its times as text; None if it has none."""
    import pyarrow as pa

    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        item = _as_text(kind.value_type)
        return None if item is None else pa.list_(item)
    if pa.types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        texts = [_as_text(field.type) for field in fields]
        if any(texts):
            return pa.struct(
                [f.with_type(text or f.type) for f, text in zip(fields, texts, strict=True)]
            )
    return None


def _why_no_json_lines(data: bytes, error: Exception) -> str:
    """The first line that is to blame, found one by one."""
    kinds: dict[str, str] = {}
    for number, line in enumerate(io.BytesIO(data), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_each_once)
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return f", line {number}: holds half of a surrogate pair, which is no text"
        except KeyError as twice:
            return f", line {number}: {twice} is there twice"
        except (ValueError, RecursionError):
            return f", line {number}: no JSON; each line must be a whole object"
        if not isinstance(value, dict):
            return f", line {number}: not an object, as in {{…}}"
        for column, item in value.items():
            kind = KINDS.get(type(item))
            if kind is not None and kinds.setdefault(column, kind) != kind:
                return (
                    f", line {number}: {column!r} is {kind} here and {kinds[column]} before; "
                    "write all of a column as one kind"
                )
    reason = re.sub(r" in row \d+$", "", str(error).partition("\n")[0])
    return f": cannot be read: {reason}"


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON; `KeyError` where a name comes twice, of which no column can hold both."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise KeyError(next(name for name in names if names.count(name) > 1))
    return value


DEEPEST = 40
"""Levels of lists and objects in a value of JSON: a catalog is Parquet, whose readers take 49."""
KINDS = {
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def _check_text(data: bytes, name: str) -> None:
    """Raises `UsageError` for what is not UTF-8."""
    import pyarrow as pa

    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UsageError(f"{name}: is UTF-16; save it as UTF-8")
    if b"\0" in data[:4096]:
        raise UsageError(f"{name}: not text; export it as CSV, or give its file the right ending")
    if data.isascii():
        return
    try:
        pa.array([data], pa.large_binary()).cast(pa.large_string())
    except pa.ArrowInvalid as invalid:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise UsageError(f"{name}, line {line}: not UTF-8; save the file as UTF-8") from invalid


READERS: dict[str, Callable[[bytes, str], pa.Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
}
