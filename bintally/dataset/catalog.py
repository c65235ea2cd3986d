"""`catalog.parquet`: one row per object of the source, with what became of it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["CatalogRow", "encode_catalog", "format_catalog", "parse_catalog", "read_catalog"]


@dataclass(slots=True)
class CatalogRow:
    """An object of the source: a photo and its metadata, or what there is of the two."""

    id: str
    count: int | None = None
    """Items in the bin."""
    group: str | None = None
    """Neighbour group; photos of one group may show one bin."""
    split: str | None = None
    shard: str | None = None
    """Path of the tar that holds it, below the dataset's place."""
    position: int | None = None
    """Which sample of that tar's index it is, from 0."""
    bytes: int | None = None
    """Size of the source's photo."""
    width: int | None = None
    """Pixels of the source's photo; known once it was decoded."""
    height: int | None = None
    skus: tuple[str, ...] | None = None
    """The products in the bin."""
    status: str = "sharded"
    """`sharded`, `excluded`, `quarantined`, `orphan-image` or `orphan-metadata`."""
    reason: str | None = None
    """Why it is not in a shard, or what had to be done to its photo."""
    crc32: int | None = None
    """Of the sample in its tar, headers and padding included: `verify` finds damage by it."""
    label: str | None = None
    """Its class, where classes are names; a catalog without names has no such column."""

    def put_aside(self, status: str, reason: str) -> None:
        """Marks the row as one that is in no shard."""
        self.status, self.reason = status, reason
        self.split = self.shard = self.position = None


def format_catalog(rows: Sequence[CatalogRow]) -> bytes:
    """The bytes of `catalog.parquet`: equal rows, equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    if any(row.label is not None for row in rows):
        schema = schema.append(pa.field("label", pa.string()))
    columns = {name: [getattr(row, name) for row in rows] for name in schema.names}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), sink, compression="zstd")
    return sink.getvalue()


def parse_catalog(data: bytes) -> list[CatalogRow]:
    """The rows of a `catalog.parquet`."""
    import pyarrow.parquet as pq

    rows = []
    # Batch by batch: all of ABID as Python's dicts at once would take a gigabyte.
    for batch in pq.ParquetFile(io.BytesIO(data)).iter_batches(10_000):
        for value in batch.to_pylist():
            row = CatalogRow(**value)
            row.skus = None if row.skus is None else tuple(row.skus)
            rows.append(row)
    return rows


def encode_catalog(table: pa.Table) -> bytes:
    """The bytes of `catalog.parquet`: equal tables, equal bytes.

    The columns that every catalog has come first, null where `table` lacks one; its other columns
    follow as they are.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    columns = {
        field.name: table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    }
    columns |= {name: table[name] for name in table.column_names if name not in columns}
    sink = io.BytesIO()
    # In one piece each, for how a column is cut into chunks would show in the bytes.
    whole = pa.table(columns).combine_chunks().unify_dictionaries()
    pq.write_table(whole.replace_schema_metadata(None), sink, compression="zstd")
    return sink.getvalue()


def read_catalog(data: bytes) -> pa.Table:
    """The columns of a `catalog.parquet`; `ValueError` where they are not those of a catalog."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(data))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    for field in _schema():
        if field.name not in table.column_names:
            raise ValueError(f"has no column {field.name}")
    return table


def _schema() -> pa.Schema:
    import pyarrow as pa

    names = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            ("id", pa.string()),
            ("count", pa.int32()),
            ("group", pa.string()),
            ("split", names),
            ("shard", names),
            ("position", pa.int32()),
            ("bytes", pa.int64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("skus", pa.list_(pa.string())),
            ("status", names),
            ("reason", pa.string()),
            ("crc32", pa.uint32()),
        ]
    )
