"""Equal values have an equal digest, whichever chunks they are in; JSON travels with a job."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.source.assembly import LabelsJson, table_digest

KINDS = {
    "text": (pa.string(), st.text(max_size=3)),
    "whole": (pa.int64(), st.integers(-9, 9)),
    "fraction": (pa.float64(), st.sampled_from([0.5, -1.0])),
    "truth": (pa.bool_(), st.booleans()),
    "list": (pa.list_(pa.string()), st.lists(st.none() | st.text(max_size=2), max_size=2)),
    "object": (
        pa.struct([("a", pa.int64()), ("b", pa.string())]),
        st.fixed_dictionaries({"a": st.none() | st.integers(0, 3), "b": st.none() | st.just("x")}),
    ),
}
tables = st.lists(
    st.fixed_dictionaries({name: st.none() | values for name, (_, values) in KINDS.items()}),
    max_size=6,
)


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    schema = pa.schema([(name, kind) for name, (kind, _) in KINDS.items()])
    return pa.Table.from_pylist(rows, schema)


@settings(max_examples=40)
@given(tables, st.integers(0, 6), st.integers(0, 6))
def test_a_digest_does_not_depend_on_chunks(rows: list[dict[str, Any]], a: int, b: int) -> None:
    table = table_of(rows)
    cut = pa.concat_tables([table[:a], table[a : a + b], table[a + b :]])
    assert table_digest(cut) == table_digest(table)
    assert table_digest(cut.combine_chunks()) == table_digest(table)


@settings(max_examples=40)
@given(tables, tables)
def test_only_equal_tables_have_equal_digests(
    rows: list[dict[str, Any]], others: list[dict[str, Any]]
) -> None:
    one, other = table_of(rows), table_of(others)
    assert (table_digest(one) == table_digest(other)) == (one.to_pylist() == other.to_pylist())


def test_a_digest_tells_what_only_names_or_nulls_tell_apart() -> None:
    tables = [
        pa.table({"a": ["x", "y"]}),
        pa.table({"b": ["x", "y"]}),
        pa.table({"a": ["xy", ""]}),
        pa.table({"a": ["xy", None]}),
        pa.table({"a": pa.array([0, None])}),
        pa.table({"a": pa.array([0, 0])}),
        pa.table({"a": pa.array([0.0, 0.0])}),
        pa.table({"a": ["x"], "b": ["y"]}),
        pa.table({"b": ["y"], "a": ["x"]}),
    ]
    assert len({table_digest(table) for table in tables}) == len(tables)


def test_json_is_taken_with_a_job_and_nothing_else() -> None:
    """A worker gets its thousand rows, and not ten million."""
    numbers = pa.array(range(100_000), pa.int32())
    columns = pa.table(
        {"count": numbers, "label": pa.nulls(100_000, pa.string()), "note": numbers.cast("string")}
    )
    taken = LabelsJson(columns, {"note": "note"}).take(np.array([99_999, 5]))
    sent = pickle.dumps(taken)
    assert len(sent) < 10_000
    assert pickle.loads(sent).get(1) == taken.get(1) == b'{"label": 5, "note": "5"}'
    assert taken.get(0) == b'{"label": 99999, "note": "99999"}'
