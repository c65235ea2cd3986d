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
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadMetadata("metadata is not JSON") from error
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
    return Metadata(count, tuple(sorted(products)))


MOST_ITEMS = 1_000_000
"""Beyond it a quantity is taken for damage (ABID's largest is 111)."""


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:40] + "…"
