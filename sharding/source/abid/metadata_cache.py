"""Metadata that was read once is kept: neither another build of the same bucket nor the job that
writes a sample's shard fetches it again.

Later builds find only objects whose version is the MD5 of their content, as S3's ETags mostly are:
that is checked before anything is kept, so what is found is what the object holds, wherever it
lies. Sizes and times prove nothing (two folders unpacked from reproducible archives agree in both).

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
    listed: pa.RecordBatch
    """Their `path`, `bytes` and `version`."""

    def entries(self) -> list[Entry]:
        return [Entry(*values) for values in zip(*self.listed.to_pydict().values(), strict=True)]

    @cached_property
    def stem(self) -> str:
        """The path of its files, if it is kept, without their suffix."""
        import pyarrow as pa
        import pyarrow.compute as pc

        path, size, version = self.listed.columns
        lines = pc.binary_join_element_wise(path, size.cast(pa.string()), version, " ").to_pylist()
        name = hashlib.sha256("\n".join([FORMAT, *lines, ""]).encode()).hexdigest()
        return str(cache_folder() / "metadata" / name)


def read_kept(chunk: Chunk, schema: pa.Schema) -> pa.RecordBatch | None:
    """What the objects of a chunk hold, the columns of `schema`, or None if it is not kept."""
    import pyarrow as pa

    try:
        with pa.OSFile(f"{chunk.stem}{PARSED}") as file:
            batch = pa.ipc.open_file(file).get_batch(0)
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException):
        return None  # Damaged; it will be replaced.
    return batch if batch.schema == schema and len(batch) == len(chunk.listed) else None


def kept_file(stem: str, begin: int, end: int) -> bytes | None:
    """The bytes of a metadata file of a kept chunk, or None if it is not kept here."""
    try:
        with Path(f"{stem}{FILES}").open("rb") as file:
            return zlib.decompress(os.pread(file.fileno(), end - begin, begin))
    except (OSError, zlib.error):
        return None


def keep(
    chunk: Chunk, parsed: pa.RecordBatch, contents: Sequence[bytes], aside: Path
) -> tuple[str, pa.RecordBatch] | None:
    """Keeps what the objects of a chunk hold: where their versions prove it for later builds, else
    in the folder `aside`, if that is on this machine, for the one that reads it now.

    Returns the stem, and `parsed` with the column `end` filled in: where each file, compressed,
    ends among the chunk's. None where nothing is kept.
    """
    import pyarrow as pa

    proved = all(map(_is_proved, chunk.listed["version"].to_pylist(), contents))
    if not proved and not aside.is_dir():
        return None
    stem = chunk.stem if proved else str(aside / str(chunk.number))
    files = [zlib.compress(content, 1) for content in contents]
    ends = pa.array(itertools.accumulate(map(len, files)), pa.int32())
    parsed = parsed.set_column(parsed.schema.get_field_index("end"), "end", ends)
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, parsed.schema) as writer:
        writer.write_batch(parsed)
    # A full disk is no reason to end: what is not kept is fetched again.
    with contextlib.suppress(WorkError):
        write_atomically(Path(f"{stem}{FILES}"), *files)
        if proved:
            write_atomically(Path(f"{stem}{PARSED}"), sink.getvalue())
        return stem, parsed
    return None


PARSED, FILES = ".arrow", ".zlib"


def _is_proved(version: str, content: bytes) -> bool:
    return version.strip('"') == hashlib.md5(content, usedforsecurity=False).hexdigest()
