"""A bin's metadata: the JSON file that lies beside each photo in ABID's layout."""

from __future__ import annotations

import json
from dataclasses import dataclass

__all__ = ["BadMetadata", "Metadata", "parse_metadata"]


class BadMetadata(ValueError):
    """Why a JSON file cannot tell a photo's count."""


@dataclass(frozen=True)
class Metadata:
    """What `sharding` needs of a bin's JSON."""

    count: int
    """`EXPECTED_QUANTITY`: how many items the bin holds."""
    skus: tuple[str, ...]
    """The products in the bin, each once, sorted. The key of an entry, which is always there,
    stands for the product; its `asin` field is sometimes another."""


def parse_metadata(data: bytes) -> Metadata:
    """Reads a metadata file; raises `BadMetadata` with the reason that the catalog then gives."""
    value = _load(data)
    if not isinstance(value, dict):
        raise BadMetadata("metadata is not a JSON object")
    if "EXPECTED_QUANTITY" not in value:
        raise BadMetadata("metadata has no EXPECTED_QUANTITY")
    count = value["EXPECTED_QUANTITY"]
    # bool is an int to Python, and `true` is no quantity.
    if not isinstance(count, int) or isinstance(count, bool):
        raise BadMetadata(f"EXPECTED_QUANTITY is {_shown(count)}, not a whole number")
    if count < 0:
        raise BadMetadata(f"EXPECTED_QUANTITY is {_shown(count)}, below zero")
    if count > MOST_ITEMS:
        raise BadMetadata(f"EXPECTED_QUANTITY is {_shown(count)}, more than a bin can hold")
    products = value.get("BIN_FCSKU_DATA")
    if not isinstance(products, dict):
        raise BadMetadata("BIN_FCSKU_DATA is not a JSON object")
    try:
        "".join(products).encode()
    except UnicodeEncodeError as error:
        # JSON can write half of a surrogate pair; no file can then hold it as text.
        raise BadMetadata("BIN_FCSKU_DATA has a key that is no text: a lone surrogate") from error
    return Metadata(count, tuple(sorted(products)))


MOST_ITEMS = 1_000_000
"""Beyond it a quantity is taken for damage (ABID's largest is 111)."""
DEEPEST = 200
"""Levels of nesting in a file (ABID's have 4). How many Python itself reads depends on its version
and on who calls it, and must not decide what becomes of a photo."""


def _load(data: bytes) -> object:
    if data.startswith(GZIP):
        raise BadMetadata("metadata is compressed with gzip, not plain JSON")
    try:
        value: object = json.loads(data)
    except RecursionError as error:
        raise BadMetadata(TOO_DEEP) from error
    except ValueError as error:
        raise BadMetadata("metadata is not JSON") from error
    # An ordinary file has too few brackets to be deep, and is not looked through.
    if data.count(b"{") + data.count(b"[") > DEEPEST and _is_deep(value):
        raise BadMetadata(TOO_DEEP)
    return value


GZIP = b"\x1f\x8b"
TOO_DEEP = f"metadata is nested deeper than {DEEPEST} levels"


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        nested = [list(v.values()) if isinstance(v, dict) else v for v in level]
        level = [child for v in nested if isinstance(v, list) for child in v]
    return bool(level)


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:40] + "…"
