"""A sample's photo and label among the files that it has in its tar. Pure.

Our own tars hold a count in a `.cls`; other people's hold a class in a `.cls`, a `.txt` or in their
JSON, and it may be a name.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence

from bintally.dataset.index import Component

__all__ = [
    "LABEL_RULES",
    "Classes",
    "are_counts",
    "check_label_rule",
    "label_component",
    "photo_component",
    "read_label",
]

LABEL_RULES = "cls, txt or json:KEY"
"""Where a label may be."""
PHOTO_EXTENSIONS = ("jpg", "jpeg")
LARGEST_COUNT = 2**31 - 1
"""What a catalog's column of counts holds. A longer number is a name, a barcode say."""
JSON_RULE = "json:"

Classes = Sequence[int] | Sequence[str]
"""What a model tells apart: counts, ascending, or names, in order."""


def are_counts(classes: Classes) -> bool:
    """Whether classes are counts, and not names: only between counts are there distances."""
    return all(isinstance(name, int) for name in classes)


def check_label_rule(rule: str) -> None:
    """Raises `ValueError` for what says no place of a label."""
    names_key = rule.startswith(JSON_RULE) and all(rule.removeprefix(JSON_RULE).split("."))
    if rule not in ("cls", "txt") and not names_key:
        raise ValueError(f"must be {LABEL_RULES}")


def photo_component(components: Sequence[Component]) -> Component | None:
    """A sample's photo; None where it has none. Raises `ValueError` where it has two."""
    return _only([c for c in components if c.extension.lower() in PHOTO_EXTENSIONS])


def label_component(components: Sequence[Component], rule: str) -> Component | None:
    """The file of a sample that holds its label; None where it has none. Raises `ValueError` where
    it has two."""
    extension = rule.partition(":")[0]
    return _only([c for c in components if c.extension.lower() == extension])


def _only(found: Sequence[Component]) -> Component | None:
    if len(found) > 1:
        raise ValueError(f"has both a .{found[0].extension} and a .{found[1].extension}")
    return found[0] if found else None


def read_label(data: bytes, rule: str) -> int | str:
    """The label that a sample's file holds, which `rule` says how to read: `cls` and `txt` are its
    text, without the space around it, `json:KEY` is that value of a JSON object (`json:a.b` is
    inside `a`).

    A whole number in ASCII digits is a count (zeros in front do not matter), all else a name.
    Raises `ValueError` with what follows on the file's name where there is none.
    """
    try:
        text = data.removeprefix(BOM_UTF8).decode()  # Editors on Windows put a mark in front.
    except UnicodeDecodeError as error:
        raise ValueError("is no UTF-8 text") from error
    if rule.startswith(JSON_RULE):
        text = _json_value(text, rule.removeprefix(JSON_RULE))
    text = text.strip()
    if not text:
        raise ValueError("is empty")
    if "\0" in text:
        raise ValueError("is no text: it holds a zero byte")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can escape one.
        raise ValueError("is no text: it holds a lone surrogate") from error
    if text.isascii() and text.isdigit():
        digits = text.lstrip("0") or "0"
        if len(digits) <= len(str(LARGEST_COUNT)) and int(digits) <= LARGEST_COUNT:
            return int(digits)
    return text


def _json_value(text: str, key: str) -> str:
    """A whole number or a text of a JSON object, as text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("is no JSON") from error
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise ValueError(f"has no key {key!r}")
        value = value[name]
    if isinstance(value, bool) or not isinstance(value, int | str):
        kind = "null" if value is None else type(value).__name__
        raise ValueError(f"has a {kind} for {key!r}, and no text or whole number")
    try:
        return str(value)
    except ValueError as error:  # Of a number with thousands of digits Python makes no text.
        raise ValueError(f"has too large a number for {key!r}") from error
