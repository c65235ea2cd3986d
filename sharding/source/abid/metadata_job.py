"""A job that fetches and parses a thousand metadata files: the catalog's unit of work."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bintally.storage.place import Entry, ObjectRefused, Place
from sharding.source.abid.metadata import BadMetadata, parse_metadata
from sharding.source.abid.metadata_cache import Chunk, keep
from sharding.source.fetch import fetch
from sharding.threads import map_in_threads

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MetadataJob", "parsed_schema"]

MAX_BYTES = 16_000_000
"""A metadata file that is larger (ABID's largest has 10 kB) would cost memory for nothing."""


def parsed_schema() -> pa.Schema:
    """What is known of each metadata file. `sha256` is null where it could not be had, `count` and
    `skus` where it tells none; `reason` says why."""
    import pyarrow as pa

    return pa.schema(
        [
            ("count", pa.int32()),
            ("skus", pa.list_(pa.string())),
            ("reason", pa.string()),
            ("sha256", pa.binary(32)),
            ("end", pa.int32()),  # of the file in what this machine has kept, see `keep`
        ]
    )


@dataclass(frozen=True)
class MetadataJob:
    """Files to read; like a `ShardJob` it shares nothing, and runs in any process."""

    source: Place
    chunk: Chunk
    connections: int
    """Requests in flight."""
    aside: Path
    """A folder for what is kept until the build ends."""

    def run(self) -> tuple[int, pa.RecordBatch, str | None]:
        """The chunk's number, what its files hold, and the stem under which they are kept."""
        import pyarrow as pa

        entries = self.chunk.entries()
        files = [*map_in_threads(self._read, entries, self.connections)]
        rows = [_parsed(file) for file in files]
        columns = {name: [row.get(name) for row in rows] for name in parsed_schema().names}
        parsed = pa.record_batch(columns, schema=parsed_schema())
        contents = [file for file in files if isinstance(file, bytes)]
        whole = len(contents) == len(files)
        kept = keep(self.chunk, parsed, contents, self.aside) if whole else None
        stem, parsed = kept or (None, parsed)
        return self.chunk.number, parsed, stem

    def _read(self, entry: Entry) -> bytes | str:
        """A file's bytes, or why they could not be had."""
        if entry.size_bytes > MAX_BYTES:
            return f"{entry.path}: has {entry.size_bytes:,} bytes, more than {MAX_BYTES:,}"
        try:
            return fetch(self.source, entry)
        except ObjectRefused as error:
            return str(error)


def _parsed(file: bytes | str) -> dict[str, object]:
    if isinstance(file, str):
        return {"reason": file}
    sha256 = hashlib.sha256(file).digest()
    try:
        known = parse_metadata(file)
    except BadMetadata as error:
        return {"reason": str(error), "sha256": sha256}
    return {"count": known.count, "skus": known.skus, "sha256": sha256}
