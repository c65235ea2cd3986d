"""Which JSON files tell a count, and what is said of those that do not."""

from __future__ import annotations

import contextlib
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.source.abid.metadata import BadMetadata, parse_metadata


def test_the_count_is_the_expected_quantity_whatever_the_products_add_up_to() -> None:
    data = {
        "BIN_FCSKU_DATA": {"B2": {"quantity": 1}, "B1": {"quantity": 1}},
        "EXPECTED_QUANTITY": 3,
    }
    metadata = parse_metadata(json.dumps(data).encode())
    assert metadata.count == 3
    assert metadata.skus == ("B1", "B2")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (b'{"EXPECTED_QUANTITY": 3, "BIN_FC', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "nested deeper"),
        (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "nested deeper"),
        (gzip.compress(b"{}", mtime=0), "compressed with gzip"),
        (b'{"BIN_FCSKU_DATA": {"\\ud83d": {}}, "EXPECTED_QUANTITY": 2}', "lone surrogate"),
        (b'{"BIN_FCSKU_DATA": {"\xed\xa0\xbd": {}}, "EXPECTED_QUANTITY": 2}', "lone surrogate"),
        (b"[3]", "not a JSON object"),
        (b'{"BIN_FCSKU_DATA": {}}', "no EXPECTED_QUANTITY"),
        (b'{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": -1}', "-1, below zero"),
        (b'{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": 2.5}', "2.5, not a whole number"),
        (b'{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": "3"}', '"3", not a whole number'),
        (b'{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": true}', "true, not a whole number"),
        (b'{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": null}', "null, not a whole number"),
        (b'{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": 1e999}', "not a whole number"),
        (b'{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": 99999999}', "more than a bin can hold"),
        (b'{"BIN_FCSKU_DATA": [], "EXPECTED_QUANTITY": 1}', "BIN_FCSKU_DATA is not"),
        (b'{"EXPECTED_QUANTITY": 1}', "BIN_FCSKU_DATA is not"),
    ],
)
def test_bad_metadata_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadMetadata, match=r"^[^\n]+$") as caught:
        parse_metadata(data)
    assert reason in str(caught.value)


@pytest.mark.parametrize(("levels", "good"), [(198, True), (199, False)])
def test_how_deep_a_file_may_be_does_not_depend_on_who_reads_it(levels: int, good: bool) -> None:
    deep = b"[" * levels + b"]" * levels
    data = b'{"BIN_FCSKU_DATA": {"B1": ' + deep + b'}, "EXPECTED_QUANTITY": 1}'

    def read(frames: int) -> bool:
        if frames:
            return read(frames - 1)
        try:
            return parse_metadata(data).count == 1
        except BadMetadata:
            return False

    assert read(0) == read(500) == good


@given(st.binary(max_size=200))
def test_no_bytes_end_otherwise_than_in_a_count_or_a_reason(data: bytes) -> None:
    with contextlib.suppress(BadMetadata):
        assert parse_metadata(data).count >= 0
