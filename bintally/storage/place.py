"""A place is a folder or `s3://bucket/prefix`; both read and write whole objects by relative path.

Objects appear complete or not at all: a folder's files are written aside and renamed, S3 does so
by itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from bintally.errors import WorkError

__all__ = ["LOCK", "Entry", "ObjectChanged", "ObjectRefused", "Place"]

TEMPORARY_SUFFIX = ".bintally-tmp"
"""Nobody else's files are called so, and these may be removed."""
LOCK = ".bintally-lock"
"""What a lease writes into a place that is being written to: no part of what it holds."""


@dataclass(frozen=True)
class Entry:
    """An object in a place."""

    path: str
    size_bytes: int
    version: str
    """Changes when the object does: its ETag on S3, its time of modification in a folder. Empty
    where it is not known, in a list that has only sizes; these are then all that is compared."""


class ObjectChanged(Exception):
    """An object is no longer as it was listed."""


class ObjectRefused(WorkError):
    """One object is kept from us, and others are not: it is archived, or may not be read."""


class Place(ABC):
    """A folder or an S3 prefix. Picklable, and safe to use from several threads."""

    url: str

    @abstractmethod
    def check(self) -> None:
        """Raises `UsageError` unless the place is there and may be read."""

    @abstractmethod
    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """The objects whose path is below the folder `prefix`, in no particular order, but for
        `LOCK` and what is being written."""

    @abstractmethod
    def get(self, path: str) -> bytes:
        """An object's bytes; `FileNotFoundError` if there is none."""

    def fetch(self, entry: Entry) -> bytes:
        """The bytes of a listed object.

        `ObjectChanged` if it is not what was listed any more, `FileNotFoundError` if it is gone,
        `ObjectRefused` if it alone cannot be had.
        """
        data = self.get(entry.path)
        if len(data) != entry.size_bytes:
            raise ObjectChanged(entry.path)
        return data

    @abstractmethod
    def put(self, path: str, *pieces: bytes) -> None:
        """Writes an object, or replaces it, whole: what the pieces hold one after the other."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Removes an object if it is there."""

    def __str__(self) -> str:
        return self.url
