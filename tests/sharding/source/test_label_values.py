"""What a label says: a count where all are numbers, else a name, or why it is none."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bintally.dataset.labels import read_label
from sharding.source.abid.metadata import MOST_ITEMS
from sharding.source.label_values import BadLabel, Value, label_columns, read_label_values


@pytest.mark.parametrize(
    "values",
    [["3", "0", "12"], [3, 0, 12], [3.0, 0.0, 12.0], ["3.0", " 0", "+12 "], ["03", "-0", "1.2e1"]],
)
def test_whole_numbers_are_counts_however_they_are_written(values: list[Value]) -> None:
    assert read_label_values(values) == [3, 0, 12]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "label is empty"),
        ("  ", "label is empty"),
        (None, "label is empty"),
        ("-1", "label is -1, below zero"),
        (-1, "label is -1, below zero"),
        ("2.5", "label is 2.5, not a whole number"),
        (2.5, "label is 2.5, not a whole number"),
        ("nan", "label is nan, not a whole number"),
        (float("nan"), "label is nan, not a whole number"),
        ("inf", "label is inf, more than a bin can hold"),
        ("1000001", "label is 1000001, more than a bin can hold"),
        (10**18, f"label is {10**18}, more than a bin can hold"),
        ("9" * 5000, f"label is {'9' * 40}…, more than a bin can hold"),
        ("1e999", "label is 1e999, more than a bin can hold"),
    ],
)
def test_a_number_that_is_no_count_has_a_reason(value: Value, reason: str) -> None:
    assert read_label_values([value, "1" if isinstance(value, str) else 1]) == [BadLabel(reason), 1]


def test_one_name_makes_all_of_them_names() -> None:
    values = ["3", " cat\t", "-1", "nan", None, "", "two words", "\ufeffdog", "a\0b"]
    assert read_label_values(values) == [
        "3",
        "cat",
        "-1",
        "nan",
        BadLabel("label is empty"),
        BadLabel("label is empty"),
        "two words",
        "dog",
        BadLabel("label holds a zero byte"),
    ]


def test_a_million_is_the_most() -> None:
    assert read_label_values([MOST_ITEMS]) == [MOST_ITEMS]


@given(st.lists(st.none() | st.text(max_size=8)))
def test_any_texts_are_all_counts_or_all_names_or_bad(values: list[str | None]) -> None:
    read = read_label_values(values)
    kinds = {type(label) for label in read if not isinstance(label, BadLabel)}
    assert kinds in (set(), {int}, {str})
    for label in read:
        if isinstance(label, int):
            assert 0 <= label <= MOST_ITEMS
        elif isinstance(label, str):
            # A reader of the `.cls` that is made of it finds the same.
            assert str(read_label(label.encode(), "cls")) in (label, label.lstrip("0"), "0")


@given(st.lists(st.floats() | st.none()), st.lists(st.integers()))
def test_numbers_are_never_names(fractions: list[float | None], whole: list[int]) -> None:
    for read in (read_label_values(fractions), read_label_values(whole)):
        assert all(isinstance(label, int | BadLabel) for label in read)


@pytest.mark.parametrize("kind", [pa.string(), pa.int8(), pa.float32(), pa.decimal128(20, 1)])
def test_a_column_of_any_type_has_the_same_counts(kind: pa.DataType) -> None:
    column = pa.array([3, None, 3, 0]).cast(kind)
    columns = label_columns(pa.chunked_array([column[:1], column[1:]]))
    assert columns["count"].to_pylist() == [3, None, 3, 0]
    assert columns["label"].to_pylist() == [None] * 4
    assert columns["reason"].to_pylist() == [None, "label is empty", None, None]


def test_true_and_false_are_names() -> None:
    assert label_columns(pa.chunked_array([[True, False]]))["label"].to_pylist() == [
        "true",
        "false",
    ]
