"""From what labels or folders say of a source's objects to its rows: sorted, with their JSON and
the source's identity."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from bintally.dataset.catalog import conform
from sharding.columns import sorted_by_id
from sharding.source.rows import SourceRows, source_schema

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["LabelsJson", "assemble", "table_digest"]


@dataclass(frozen=True)
class LabelsJson:
    """The JSON of samples whose labels came with the photos' list: made when it is wanted."""

    columns: pa.Table
    """`count` and `label`, of which one is the label, and what else the JSON holds."""
    names: Mapping[str, str]
    """What that is called in the JSON, by column."""

    def take(self, rows: NDArray[np.int64]) -> LabelsJson:
        """That of some rows, in the order given, and of no others: it travels with a job."""
        return LabelsJson(self.columns.take(rows), self.names)

    def get(self, number: int) -> bytes:
        """The JSON of row `number`: `{"label": …}`, and its values that are not null."""
        row = self._rows[number]
        label = row["label"] if row["count"] is None else row["count"]
        value = {"label": label} | {name: row[column] for column, name in self.names.items()}
        return json.dumps(_without_nulls(value), ensure_ascii=False).encode()

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.columns.to_pylist()
        return rows


def _without_nulls(value: Any) -> Any:
    """Without what JSON cannot hold, inside of lists null."""
    if isinstance(value, dict):
        kept = {name: _without_nulls(item) for name, item in value.items()}
        return {name: item for name, item in kept.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def assemble(table: pa.Table, extras: Mapping[str, str], numbers: Mapping[str, int]) -> SourceRows:
    """The rows of a source. `table` has columns of `source_schema`, those that it lacks being null,
    in rows of any order, and `extras`, which are called as these say in a sample's JSON. `numbers`
    begin the identity."""
    rows = conform(table, source_schema())
    for name in extras:
        rows = rows.append_column(name, table[name])
    rows = _distinct(sorted_by_id(rows))
    # The version of an object is that of the place where it lies.
    digest = table_digest(rows.drop_columns(["version"]))
    known = LabelsJson(rows.select(["count", "label", *extras]), dict(extras))
    return SourceRows(rows, known, {**numbers, "sha256": digest})


def _distinct(rows: pa.Table) -> pa.Table:
    """Rows by id, each id once. Samples have such; of all else one that another has is numbered."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pc.any(pc.equal(rows["id"][1:], rows["id"][:-1])).as_py():
        return rows
    ids, paths, sizes = (rows[column].to_pylist() for column in ("id", "path", "bytes"))
    taken = Counter(ids)
    again = sorted(
        (id_, paths[row] is None, sizes[row] or 0, row)
        for row, id_ in enumerate(ids)
        if taken[id_] > 1
    )
    for (before, *_), (id_, *_, row) in pairwise(again):
        if before == id_:
            number = 2
            while f"{id_} ({number})" in taken:
                number += 1
            ids[row] = f"{id_} ({number})"
            taken[ids[row]] = 1
    return sorted_by_id(rows.set_column(0, "id", pa.chunked_array([ids], pa.string())))


def table_digest(table: pa.Table) -> str:
    """A SHA-256 of a table's names and values, whichever chunks these are in."""
    hashes: defaultdict[str, Any] = defaultdict(hashlib.sha256)
    for name, column in zip(table.column_names, table.columns, strict=True):
        for chunk in column.chunks:
            _feed(hashes, json.dumps(name), chunk)
    whole = hashlib.sha256()
    for path, part in hashes.items():
        whole.update(f"{path} {part.hexdigest()}\n".encode())
    return whole.hexdigest()


def _feed(hashes: defaultdict[str, Any], path: str, array: pa.Array) -> None:
    """Adds an array to the hashes of what it consists of: which values there are, how long they
    are, and what is in them."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if not len(array):
        return
    hashes[f"{path} valid"].update(array.is_valid().to_numpy(zero_copy_only=False))
    if pa.types.is_struct(array.type):
        for field, values in zip(array.type, array.flatten(), strict=True):
            _feed(hashes, f"{path}.{json.dumps(field.name)}", values)
    elif pa.types.is_list(array.type):
        lengths = pc.fill_null(pc.list_value_length(array), 0)
        hashes[f"{path} lengths"].update(lengths.to_numpy())
        _feed(hashes, f"{path}[]", array.flatten())
    elif pa.types.is_string(array.type):
        written = pc.fill_null(array, "")
        _, offsets, data = written.buffers()
        ends = np.frombuffer(offsets, np.int32)[written.offset :][: len(written) + 1]
        hashes[f"{path} lengths"].update(np.diff(ends))
        hashes[f"{path} text"].update(memoryview(data or b"")[ends[0] : ends[-1]])
    else:
        numbers = pc.fill_null(array, False if pa.types.is_boolean(array.type) else 0)
        hashes[f"{path} {array.type}"].update(numbers.to_numpy(zero_copy_only=False))
