"""Metadata that was read once is kept: another build of the same bucket fetches none of it again.

The files lie in the user's cache folder, one for some thousands of metadata objects, and are named
by a digest of the objects' names, sizes and versions (ETags, or times of modification): what has
changed is read again, and nothing has to be told. All of ABID's takes about 400 MB.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from bintally.cache import cache_folder
from bintally.places import Entry, write_atomically

__all__ = ["CHUNK", "read_chunk", "write_chunk"]

CHUNK = 4096
"""Objects in a file."""


def _file(entries: Sequence[Entry]) -> Path:
    listing = "".join(f"{e.path} {e.size_bytes} {e.version}\n" for e in entries)
    digest = hashlib.sha256(listing.encode()).hexdigest()
    return cache_folder() / "metadata" / f"{digest}.parquet"


def read_chunk(entries: Sequence[Entry]) -> dict[str, bytes] | None:
    """The bytes of the listed objects by path, or None if they have not been kept."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(_file(entries))
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowInvalid):
        return None  # Damaged; it will be replaced.
    return dict(zip(table["path"].to_pylist(), table["data"].to_pylist(), strict=True))


def write_chunk(entries: Sequence[Entry], data: Mapping[str, bytes]) -> None:
    """Keeps the bytes of the listed objects, by path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    table = pa.table({"path": list(data), "data": list(data.values())})
    pq.write_table(table, sink, compression="zstd")
    write_atomically(_file(entries), sink.getvalue())
