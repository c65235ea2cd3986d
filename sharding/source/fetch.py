"""Fetching what was listed."""

from __future__ import annotations

from bintally.storage.place import Entry, ObjectChanged, ObjectRefused, Place

__all__ = ["fetch"]


def fetch(source: Place, entry: Entry) -> bytes:
    """The bytes of a listed object; `ObjectRefused`, saying why, where they cannot be had."""
    try:
        return source.fetch(entry)
    except FileNotFoundError as error:
        raise ObjectRefused(f"{entry.path}: vanished before it was fetched") from error
    except ObjectChanged as error:
        raise ObjectRefused(f"{entry.path}: changed before it was fetched") from error
