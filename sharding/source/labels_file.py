"""A file of labels: of which photo a row speaks, what it says of it, and what else it knows."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, TypeVar

from bintally.dataset.manifest import SPLIT_NAMES
from bintally.errors import UsageError
from sharding.source.label_values import label_columns
from sharding.source.rows import source_schema
from sharding.tables.plain_types import infer_type, plain, plain_text
from sharding.tables.table_file import is_untyped, read_table_file

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Labels", "read_labels"]

T = TypeVar("T")

PATH_COLUMNS = ("path", "file", "filename", "file_name", "image")
ID_COLUMN = "id"
LABEL_COLUMNS = ("label", "class", "count")


@dataclass(frozen=True)
class Labels:
    """What a file says of photos: one row per row of the file, in its order, but for blank ones."""

    file: str
    """The file, as the user named it."""
    key_column: str
    """The column that names the photo."""
    keys: pa.StringArray
    """What it holds: paths below the source, or ids."""
    by_id: bool
    """Whether these are ids: a photo's name, or its path, without the extension."""
    table: pa.Table
    """Columns `count`, `label`, `reason` (why there is neither), `group`, `split` and `skus`, of
    the types in `source_schema`; after them the file's other columns, in plain types."""
    extras: dict[str, str]
    """What those others are called in the file, by what they are called in `table`."""


def read_labels(
    file: str | os.PathLike[str], *, group: str | None = None, anonymous: bool = False
) -> Labels:
    """Reads a file of labels: a path or s3://BUCKET/KEY. `group` is the column that holds a photo's
    group, where it is not the one called `group`.

    Raises `UsageError`, with the file, the column or row, and the remedy, for what is no table, and
    where no column, or more than one, names the photo, or none holds a label.
    """
    import pyarrow as pa

    columns = _Columns(os.fspath(file), _written_rows(read_table_file(file, anonymous=anonymous)))
    if not len(columns.table):
        raise UsageError(f"{columns.file}: has no rows")
    key = columns.find_key()
    label = columns.find(LABEL_COLUMNS)
    if label is None:
        raise columns.complaint(f"no column holds the label; call it {_one_of(LABEL_COLUMNS)}")
    if group is not None and group not in columns.names:
        raise columns.complaint(f"no column is called {group!r}, as --group column:{group} has it")
    own = {"group": group or columns.find(["group"])}
    own |= {name: columns.find([name]) for name in ("split", "skus")}
    table = columns.read(label, label_columns)
    for name, make in (("group", _groups), ("split", _splits), ("skus", _skus)):
        column = own[name]
        nothing = pa.nulls(len(columns.table), source_schema().field(name).type)
        table[name] = nothing if column is None else columns.read(column, make)
    extras: dict[str, str] = {}
    for column in columns.names:
        if column not in {key, label, *own.values()} - {group}:
            name = _name_in_catalog(column, extras)
            extras[name] = column
            table[name] = columns.read(column, _inferred if is_untyped(file) else plain)
    return Labels(
        columns.file,
        key,
        columns.read(key, _keys),
        key.lower() == ID_COLUMN,
        pa.table(table),
        extras,
    )


@dataclass(frozen=True)
class _Columns:
    """A file's columns, and its name for complaints."""

    file: str
    table: pa.Table

    @property
    def names(self) -> list[str]:
        names: list[str] = self.table.column_names
        return names

    def find(self, wanted: Sequence[str]) -> str | None:
        """The first of the columns wanted that there is, in whatever capitals."""
        for lower in wanted:
            fitting = [name for name in self.names if name.lower() == lower]
            if len(fitting) > 1:
                raise self._doubt(fitting)
            if fitting:
                return fitting[0]
        return None

    def find_key(self) -> str:
        """The column that names the photo."""
        import pyarrow as pa

        paths = [name for name in self.names if name.lower() in PATH_COLUMNS]
        # In Hugging Face's Parquet files `image` is the photo itself.
        paths = [name for name in paths if not pa.types.is_nested(self.table[name].type)]
        if len(paths) > 1:
            raise self._doubt(paths)
        key = paths[0] if paths else self.find([ID_COLUMN])
        if key is None:
            raise self.complaint(
                f"no column names the photo; call it {_one_of(PATH_COLUMNS)} if it holds the path "
                f"below the source, or {ID_COLUMN} if it lacks the extension"
            )
        return key

    def read(self, column: str, make: Callable[[pa.ChunkedArray], T]) -> T:
        """What `make` makes of a column; what it has against it is a `UsageError`."""
        try:
            return make(self.table[column])
        except TypeError as error:
            raise UsageError(
                f"{self.file}: {column!r} is of the type {error}, which cannot be used here; leave "
                "it out, or write it as text"
            ) from error
        except ValueError as error:
            raise UsageError(f"{self.file}: {column!r} {error}") from error

    def complaint(self, text: str) -> UsageError:
        return UsageError(f"{self.file}: {text}; it has {', '.join(map(repr, self.names))}")

    def _doubt(self, names: Sequence[str]) -> UsageError:
        shown = " and ".join(map(repr, names))
        return UsageError(f"{self.file}: {shown} may mean the same; rename all but one")


def _one_of(names: Collection[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


def _written_rows(table: pa.Table) -> pa.Table:
    """Without blank rows: programs that write tables leave such at the end."""
    import pyarrow.compute as pc

    return table.filter(reduce(pc.or_, (pc.is_valid(column) for column in table.columns)))


def _name_in_catalog(column: str, others: Collection[str]) -> str:
    while column in RESERVED or column in source_schema().names or column in others:
        column = f"labels_{column}"
    return column


RESERVED = ("crc32", "height", "position", "shard", "width")
"""Columns of a catalog, beside those of a source."""


def _inferred(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return plain(infer_type(column))


def _keys(column: pa.ChunkedArray) -> pa.StringArray:
    import pyarrow.compute as pc

    keys = pc.fill_null(plain_text(column), "")
    if (first := _first(pc.equal(keys, ""))) is not None:
        raise ValueError(f"is empty in {first}, which names no photo then; remove that row")
    return pc.replace_substring_regex(keys, r"^(\./+)+", "").combine_chunks()


def _first(wrong: pa.ChunkedArray) -> str | None:
    """Where the first of the rows that are wrong is; None if there is none."""
    import pyarrow.compute as pc

    row = pc.index(wrong, True).as_py()
    return None if row < 0 else f"row {row + 1:,} (without the header and blank rows)"


def _groups(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow.compute as pc

    groups = pc.utf8_trim_whitespace(plain_text(column))
    return pc.if_else(pc.equal(groups, ""), None, groups)


def _splits(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    written = pc.utf8_lower(_groups(column))
    numbers = pc.index_in(written, pa.array([*SPLIT_NAMES]))
    wrong = pc.and_(pc.is_valid(written), pc.is_null(numbers))
    if (first := _first(wrong)) is not None:
        value = column.filter(wrong)[0].as_py()
        raise ValueError(
            f"is {value!r} in {first}; it may be {_one_of(SPLIT_NAMES)}, or empty where the split "
            "is to be drawn"
        )
    return pa.chunked_array([pa.array([*SPLIT_NAMES.values()])]).take(numbers)


def _skus(column: pa.ChunkedArray) -> pa.Array:
    """The products of each row, each once and sorted; null where there are none."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    listed = column.combine_chunks()
    if not pa.types.is_nested(column.type):
        listed = pc.split_pattern_regex(plain_text(column).combine_chunks(), r"[\s,;]+")
    try:
        listed = listed.cast(pa.list_(pa.string()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise TypeError(f"{column.type}") from error
    entries = pa.table({"row": pc.list_parent_indices(listed), "sku": listed.flatten()})
    entries = entries.filter(pc.not_equal(pc.fill_null(entries["sku"], ""), ""))
    entries = entries.group_by(["row", "sku"]).aggregate([])
    entries = entries.sort_by([("row", "ascending"), ("sku", "ascending")])
    numbers = np.bincount(entries["row"].to_numpy(), minlength=len(listed))
    offsets = np.concatenate(([0], np.cumsum(numbers))).astype(np.int32)
    return pa.ListArray.from_arrays(
        offsets, entries["sku"].combine_chunks(), mask=pa.array(numbers == 0)
    )
