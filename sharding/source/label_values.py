"""What a value in a column of labels, or the name of a class's folder, says: a count or a name."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharding.source.abid.metadata import MOST_ITEMS
from sharding.tables.plain_types import plain_text

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["BadLabel", "label_columns", "read_label_values"]


@dataclass(frozen=True)
class BadLabel:
    """Why a value is no label."""

    reason: str


Value = str | int | float | None


def read_label_values(values: Sequence[Value]) -> list[int | str | BadLabel]:
    """What each of the values of a column says, which are all texts or all numbers.

    If all are numbers they are counts, and one that is no whole number from 0 to `MOST_ITEMS` is a
    `BadLabel`; if one is a name all are, without the space around them. Nothing says nothing.
    """
    numbers = [_number(value) for value in values]
    texts = [str(value).replace(BYTE_ORDER_MARK, "").strip() for value in values]
    empty = [value is None or not text for value, text in zip(values, texts, strict=True)]
    if any(number is None and not e for number, e in zip(numbers, empty, strict=True)):
        return [
            BadLabel(EMPTY) if e else BadLabel("label holds a zero byte") if "\0" in text else text
            for text, e in zip(texts, empty, strict=True)
        ]
    return [
        BadLabel(EMPTY) if number is None else _count(number, text)
        for number, text in zip(numbers, texts, strict=True)
    ]


BYTE_ORDER_MARK = "\ufeff"
"""Editors on Windows put it in front, and readers of a `.cls` take it away."""
EMPTY = "label is empty"


def _number(value: Value) -> int | float | None:
    if not isinstance(value, str):
        return value
    text = value.strip()
    return float(text) if NUMBER.fullmatch(text) else None


NUMBER = re.compile(
    r"[-+]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|inf|infinity)|nan", re.IGNORECASE
)


def _count(number: int | float, text: str) -> int | BadLabel:
    shown = text if len(text) <= 40 else text[:40] + "…"
    if number < 0:
        return BadLabel(f"label is {shown}, below zero")
    if number > MOST_ITEMS:
        return BadLabel(f"label is {shown}, more than a bin can hold")
    if math.isnan(number) or number % 1:
        return BadLabel(f"label is {shown}, not a whole number")
    return int(number)


def label_columns(column: pa.ChunkedArray) -> dict[str, pa.Array]:
    """The columns `count`, `label` and `reason` (why there is neither, else null) of a column of
    texts or numbers. Raises `TypeError` for one of lists or objects."""
    import pyarrow as pa

    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        column = plain_text(column)
    # A value that comes a million times is read once.
    encoded = column.combine_chunks().dictionary_encode()
    values = encoded.dictionary.to_pylist()
    read = [*read_label_values(values), BadLabel(EMPTY)]
    codes = encoded.indices.fill_null(len(values))
    counts = [value if isinstance(value, int) else None for value in read]
    names = [value if isinstance(value, str) else None for value in read]
    reasons = [value.reason if isinstance(value, BadLabel) else None for value in read]
    return {
        "count": pa.array(counts, pa.int32()).take(codes),
        "label": pa.array(names, pa.string()).take(codes),
        "reason": pa.array(reasons, pa.string()).take(codes),
    }
