"""Tables for the tests of labels and listings, written in every way that people write them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["FORMS", "listing_of", "written"]

FORMS = ("csv", "tsv", "parquet", "jsonl")


def written(form: str, columns: Mapping[str, Sequence[Any]]) -> bytes:
    """The bytes of a file with these columns; of CSV's, None is an empty cell."""
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if form == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if form == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.table({name: pa.array(v) for name, v in columns.items()}), sink)
        return sink.getvalue()
    text = io.StringIO()
    writer = csv.writer(text, delimiter="," if form == "csv" else "\t")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(
            [" ".join(cell) if isinstance(cell, list) else cell for cell in row.values()]
        )
    return text.getvalue().encode()


def listing_of(*paths: str, size: int = 100) -> pa.Table:
    """What `list_source` says of objects with these paths."""
    return pa.table(
        {
            "path": pa.array(paths, pa.string()),
            "bytes": pa.array([size] * len(paths), pa.int64()),
            "version": pa.array(["v"] * len(paths), pa.string()),
        }
    )
