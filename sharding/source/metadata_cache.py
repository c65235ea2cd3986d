"""Metadata that was read once is kept: another build of the same bucket fetches none of it again.

Only of objects whose version is the MD5 of their content, as S3's ETags mostly are: that is checked
before anything is kept, so what is found later is what the object holds, wherever it lies. Sizes
and times prove nothing (two folders unpacked from reproducible archives agree in both), and a
folder's files are read again in a fifth of a millisecond each.

The files lie in the user's cache folder, one for a thousand metadata objects, and are named by a
digest of the objects' names, sizes and versions: what has changed is read again, and nothing has to
be told. All of ABID's takes about 400 MB.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import zlib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from bintally.errors import WorkError
from bintally.storage.cache import cache_folder
from bintally.storage.folder import write_atomically
from bintally.storage.place import Entry
from sharding.source.metadata_job import ParsedMetadata

__all__ = ["CHUNK", "read_chunk", "write_chunk"]

CHUNK = 1024
"""Objects in a file."""

FORMAT = "3"
"""To be changed with the columns, or with what `parse_metadata` makes of a file."""


def _file(entries: Sequence[Entry]) -> Path:
    listing = "".join(f"{e.path} {e.size_bytes} {e.version}\n" for e in entries)
    digest = hashlib.sha256(f"{FORMAT}\n{listing}".encode()).hexdigest()
    return cache_folder() / "metadata" / f"{digest}.parquet"


def read_chunk(entries: Sequence[Entry]) -> list[ParsedMetadata] | None:
    """What the listed objects hold, in their order, or None if they have not been kept."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(_file(entries))
        columns = [table[field.name].to_pylist() for field in fields(ParsedMetadata)]
    except FileNotFoundError:
        return None
    except (OSError, KeyError, pa.ArrowInvalid):
        return None  # Damaged; it will be replaced.
    return [
        ParsedMetadata(path, count, None if skus is None else tuple(skus), *rest)
        for path, count, skus, *rest in zip(*columns, strict=True)
    ]


def write_chunk(entries: Sequence[Entry], parsed: Sequence[ParsedMetadata]) -> None:
    """Keeps what the listed objects hold, if their versions prove it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not all(map(_is_proved, entries, parsed)):
        return

    schema = pa.schema(
        [
            ("path", pa.string()),
            ("count", pa.int64()),
            ("skus", pa.list_(pa.string())),
            ("reason", pa.string()),
            ("sha256", pa.binary()),
            ("data", pa.binary()),
        ]
    )
    columns = {name: [getattr(item, name) for item in parsed] for name in schema.names}
    sink = io.BytesIO()
    # The data, which are nearly all of it, are compressed already.
    pq.write_table(pa.table(columns, schema), sink, compression="none", use_dictionary=False)
    # A full disk is no reason to end: what is not kept is fetched again.
    with contextlib.suppress(WorkError):
        write_atomically(_file(entries), sink.getvalue())


def _is_proved(entry: Entry, parsed: ParsedMetadata) -> bool:
    content = hashlib.md5(zlib.decompress(parsed.data), usedforsecurity=False)
    return entry.version.strip('"') == content.hexdigest()
