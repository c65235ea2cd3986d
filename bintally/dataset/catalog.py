"""`catalog.parquet`: one row per object of the source, with what became of it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["conform", "encode_catalog", "read_catalog"]


def encode_catalog(table: pa.Table) -> bytes:
    """The bytes of `catalog.parquet`: equal tables, equal bytes.

    The columns that every catalog has come first, null where `table` lacks one; its other columns
    follow as they are.
    """
    import pyarrow.parquet as pq

    others = [name for name in table.column_names if name not in _schema().names]
    whole = conform(table, _schema())
    for name in others:
        whole = whole.append_column(table.schema.field(name), table[name])
    sink = io.BytesIO()
    # In one piece each, for how a column is cut into chunks would show in the bytes.
    whole = whole.combine_chunks().unify_dictionaries()
    pq.write_table(whole.replace_schema_metadata(None), sink, compression="zstd")
    return sink.getvalue()


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema, in its types: those of a table, null where it lacks one.

    Raises `ValueError`, naming the column, where one is of a type that does not become the other.
    """
    import pyarrow as pa

    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(len(table), field.type))
            continue
        try:
            columns.append(table[field.name].cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            was = table.schema.field(field.name).type
            raise ValueError(f"the column {field.name} is {was}, not {field.type}") from error
    return pa.table(columns, schema=schema)


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
    """The columns that every catalog has. Where classes are names there is a column `label`."""
    import pyarrow as pa

    names = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            ("id", pa.string()),
            ("count", pa.int32()),  # items in the bin
            ("group", pa.string()),  # photos of one group may show one bin
            ("split", names),
            ("shard", names),  # path of the tar that holds it, below the dataset's place
            ("position", pa.int32()),  # which sample of that tar's index it is, from 0
            ("bytes", pa.int64()),  # of the source's photo
            ("width", pa.int32()),  # pixels of the source's photo; known once it was decoded
            ("height", pa.int32()),
            ("skus", pa.list_(pa.string())),  # the products in the bin
            ("status", names),  # sharded, excluded, quarantined, orphan-image or orphan-metadata
            ("reason", pa.string()),  # why it is in no shard, or what was done to its photo
            ("crc32", pa.uint32()),  # of the sample in its tar, headers and padding included
        ]
    )
