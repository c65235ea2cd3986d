"""Metadata that was read once is kept: neither another build of the same bucket nor the job that
writes a sample's shard fetches it again.

Only of objects whose version is the MD5 of their content, as S3's ETags mostly are: that is checked
before anything is kept, so what is found later is what the object holds, wherever it lies. Sizes
and times prove nothing (two folders unpacked from reproducible archives agree in both), and a
folder's files are read again in no time.

The files lie in the user's cache folder, two for a thousand metadata objects: what was understood,
and, compressed, what was read. They are named by a
digest of the objects' names, sizes and versions: what has changed is read again, and nothing has to
be told. All of ABID's takes about 400 MB. Another machine's jobs find none of it, and fetch.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bintally.errors import WorkError
from bintally.storage.cache import cache_folder
from bintally.storage.folder import write_atomically
from bintally.storage.place import Entry

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["CHUNK", "Chunk", "keep", "kept_file", "read_kept"]

CHUNK = 1024
"""Objects in a file."""

FORMAT = "4"
"""To be changed with the columns, or with what `parse_metadata` makes of a file."""


@dataclass(frozen=True)
class Chunk:
    """Some of a source's metadata objects, as they were listed."""

    number: int
    listed: pa.Table
    """Their `path`, `bytes` and `version`."""

    def entries(self) -> list[Entry]:
        return [Entry(*values) for values in zip(*self.listed.to_pydict().values(), strict=True)]

    @cached_property
    def name(self) -> str:
        """Of its file, if it is kept."""
        import pyarrow as pa
        import pyarrow.compute as pc

        path, size, version = self.listed.columns
        lines = pc.binary_join_element_wise(path, size.cast(pa.string()), version, " ").to_pylist()
        return hashlib.sha256("\n".join([FORMAT, *lines, ""]).encode()).hexdigest()


def read_kept(chunk: Chunk, schema: pa.Schema) -> pa.RecordBatch | None:
    """What the objects of a chunk hold, the columns of `schema`, or None if it is not kept."""
    import pyarrow as pa

    try:
        with pa.OSFile(str(_path(chunk.name, PARSED))) as file:
            batch = pa.ipc.open_file(file).get_batch(0)
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException):
        return None  # Damaged; it will be replaced.
    return batch if batch.schema == schema and len(batch) == len(chunk.listed) else None


def kept_file(name: str, begin: int, end: int) -> bytes | None:
    """The bytes of a metadata file of a kept chunk, or None if it is kept no more."""
    try:
        with _path(name, FILES).open("rb") as file:
            return zlib.decompress(os.pread(file.fileno(), end - begin, begin))
    except (OSError, zlib.error):
        return None


def keep(chunk: Chunk, parsed: pa.RecordBatch, contents: Sequence[bytes]) -> pa.RecordBatch | None:
    """Keeps what the objects of a chunk hold, if their versions prove it.

    Returns `parsed` with the column `end` filled in: where each file, compressed, ends among the
    chunk's; None where nothing is kept.
    """
    import pyarrow as pa

    if not all(map(_is_proved, chunk.listed["version"].to_pylist(), contents)):
        return None
    files = [zlib.compress(content, 1) for content in contents]
    ends = pa.array(itertools.accumulate(map(len, files)), pa.int32())
    parsed = parsed.set_column(parsed.schema.get_field_index("end"), "end", ends)
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, parsed.schema) as writer:
        writer.write_batch(parsed)
    # A full disk is no reason to end: what is not kept is fetched again.
    with contextlib.suppress(WorkError):
        write_atomically(_path(chunk.name, FILES), *files)
        write_atomically(_path(chunk.name, PARSED), sink.getvalue())
        return parsed
    return None


PARSED, FILES = ".arrow", ".zlib"


def _path(name: str, suffix: str) -> Path:
    return cache_folder() / "metadata" / f"{name}{suffix}"


def _is_proved(version: str, content: bytes) -> bool:
    return version.strip('"') == hashlib.md5(content, usedforsecurity=False).hexdigest()
