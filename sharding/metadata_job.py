"""A job that fetches and parses some hundreds of metadata files: the catalog's unit of work."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from bintally.places import Entry, ObjectChanged, Place
from sharding.metadata import BadMetadata, parse_metadata
from sharding.threads import map_in_threads

__all__ = ["MetadataJob", "ParsedMetadata"]


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


@dataclass(frozen=True)
class MetadataJob:
    """Files to read; like a `ShardJob` it shares nothing, and runs in any process."""

    source: Place
    entries: Sequence[Entry]
    connections: int
    """Requests in flight."""

    def run(self) -> tuple[Sequence[Entry], list[ParsedMetadata | None]]:
        """Its entries, and for each what it holds; None for one that is there no more."""
        return self.entries, [*map_in_threads(self._read, self.entries, self.connections)]

    def _read(self, entry: Entry) -> ParsedMetadata | None:
        try:
            return ParsedMetadata.of(entry.path, self.source.fetch(entry))
        except (FileNotFoundError, ObjectChanged):
            return None
