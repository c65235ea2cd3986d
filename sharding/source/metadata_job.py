"""A job that fetches and parses some hundreds of metadata files: the catalog's unit of work."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from bintally.storage.place import Entry, ObjectChanged, ObjectRefused, Place
from sharding.source.metadata import BadMetadata, parse_metadata
from sharding.threads import map_in_threads

__all__ = ["MetadataJob", "ParsedMetadata", "Unread"]


@dataclass(frozen=True, slots=True)
class ParsedMetadata:
    """A metadata file and what it says: a count and products, or a reason why it says nothing."""

    path: str
    count: int | None
    skus: tuple[str, ...] | None
    reason: str | None
    sha256: bytes
    """Of the file."""
    data: bytes
    """The file, zlib-compressed."""

    @classmethod
    def of(cls, path: str, data: bytes) -> ParsedMetadata:
        """Parses the bytes of a file."""
        count, skus, reason = None, None, None
        try:
            known = parse_metadata(data)
        except BadMetadata as error:
            reason = str(error)
        else:
            count, skus = known.count, known.skus
        sha256 = hashlib.sha256(data).digest()
        return cls(path, count, skus, reason, sha256, zlib.compress(data, 1))


MAX_BYTES = 16_000_000
"""A metadata file that is larger (ABID's largest has 10 kB) would cost memory for nothing."""


@dataclass(frozen=True, slots=True)
class Unread:
    """Why a metadata file could not be had."""

    reason: str


@dataclass(frozen=True)
class MetadataJob:
    """Files to read; like a `ShardJob` it shares nothing, and runs in any process."""

    source: Place
    entries: Sequence[Entry]
    connections: int
    """Requests in flight."""

    def run(self) -> tuple[Sequence[Entry], list[ParsedMetadata | Unread]]:
        """Its entries, and for each what it holds or why it could not be had."""
        return self.entries, [*map_in_threads(self._read, self.entries, self.connections)]

    def _read(self, entry: Entry) -> ParsedMetadata | Unread:
        if entry.size_bytes > MAX_BYTES:
            return Unread(f"{entry.path}: has {entry.size_bytes:,} bytes, more than {MAX_BYTES:,}")
        try:
            return ParsedMetadata.of(entry.path, self.source.fetch(entry))
        except FileNotFoundError:
            return Unread(f"{entry.path}: vanished before it was fetched")
        except ObjectChanged:
            return Unread(f"{entry.path}: changed before it was fetched")
        except ObjectRefused as error:
            return Unread(str(error))
