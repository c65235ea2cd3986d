"""Equal values are equal, whichever types and files they come from."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.tables.plain_types import infer_type, plain, plain_text

MOMENT = datetime.datetime(2024, 1, 31, 12, 30)
BERLIN = datetime.timezone(datetime.timedelta(hours=1))


def column(*values: Any, kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, kind)])


@pytest.mark.parametrize(
    ("values", "made"),
    [
        (column(1, None, kind=pa.uint8()), [1, None]),
        (column(2**63, kind=pa.uint64()), [str(2**63)]),
        (column(1.5, float("nan"), float("inf"), kind=pa.float32()), [1.5, None, None]),
        (column(Decimal("1.10")), [1.1]),
        (column("a", "", None, kind=pa.large_string()), ["a", None, None]),
        (column("a", kind=pa.string_view()), ["a"]),
        (column(b"a", kind=pa.binary()), ["a"]),
        (column("a", "a").dictionary_encode(), ["a", "a"]),
        (column(True, None), [True, None]),
        (column(None, kind=pa.null()), [None]),
        (column(MOMENT.date()), ["2024-01-31"]),
        (column(MOMENT), ["2024-01-31T12:30:00"]),
        (column(MOMENT, kind=pa.timestamp("ns")), ["2024-01-31T12:30:00"]),
        (column(MOMENT.replace(microsecond=500)), ["2024-01-31T12:30:00.000500"]),
        (
            column(MOMENT.replace(tzinfo=BERLIN), kind=pa.timestamp("us", "Europe/Berlin")),
            ["2024-01-31T11:30:00Z"],
        ),
        (column(MOMENT.time()), ["12:30:00"]),
        (column([1, 2], kind=pa.list_(pa.int8(), 2)), [[1, 2]]),
        (column({"a": [{"b": 1.5}]}), [{"a": [{"b": 1.5}]}]),
    ],
)
def test_a_type_becomes_a_plain_one(values: pa.ChunkedArray, made: list[Any]) -> None:
    assert plain(values).to_pylist() == made


@pytest.mark.parametrize(
    "values",
    [
        column(b"\xff\xd8", kind=pa.binary()),
        column([b"\xff"]),
        column(datetime.timedelta(1)),
        column([("a", 1)], kind=pa.map_(pa.string(), pa.int8())),
    ],
)
def test_what_json_cannot_hold_is_refused(values: pa.ChunkedArray) -> None:
    with pytest.raises(TypeError):
        plain(values)


@pytest.mark.parametrize(
    ("texts", "made"),
    [
        (["1", "-20", None], [1, -20, None]),
        (["00012", "12"], ["00012", "12"]),
        (["0", "1"], [0, 1]),
        (["0.5", "1", "-2e3"], [0.5, 1.0, -2000.0]),
        (["00.5", "1"], ["00.5", "1"]),
        (["9" * 19, "1"], ["9" * 19, "1"]),
        (["9" * 18 + ".0"], ["9" * 18 + ".0"]),
        (["1e999"], ["1e999"]),
        (["true", "FALSE", "True"], [True, False, True]),
        (["1", "x"], ["1", "x"]),
        (["2024-01-31"], ["2024-01-31"]),
        (["1 ", "2"], ["1 ", "2"]),
        ([None, None], [None, None]),
    ],
)
def test_text_becomes_numbers_only_if_all_of_it_is_written_as_such(
    texts: list[str | None], made: list[Any]
) -> None:
    assert infer_type(column(*texts, kind=pa.string())).to_pylist() == made


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_whole_numbers_come_back(numbers: list[int]) -> None:
    assert infer_type(column(*map(str, numbers))).to_pylist() == numbers


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_fractions_come_back(numbers: list[float]) -> None:
    read = infer_type(column(*map(repr, numbers)))
    long = [n for n in numbers if "e" not in repr(n) and abs(n) >= 1e15]
    assert read.to_pylist() == ([*map(repr, numbers)] if long else numbers)


@given(st.lists(st.text(st.sampled_from("0123456789.-e"), max_size=6), min_size=1))
def test_no_text_loses_a_zero_in_front(texts: list[str]) -> None:
    made = infer_type(column(*texts)).to_pylist()
    if any(
        len(text) > 1 and text.lstrip("-").startswith("0") and "." not in text and "e" not in text
        for text in texts
    ):
        assert made == texts


def test_a_number_as_text_is_as_it_is_written() -> None:
    assert plain_text(column(12, None)).to_pylist() == ["12", None]
    assert plain_text(column(12.0)).to_pylist() == ["12"]
    assert plain_text(column(True)).to_pylist() == ["true"]
    with pytest.raises(TypeError):
        plain_text(column([1]))
