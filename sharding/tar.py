"""A shard's tar and its index, made in one pass.

Plain USTAR with nothing of the moment or machine in it (no times, owners or names of users), so
that the same samples give the same bytes, and without PAX headers, which would add two blocks and
more to every member.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Sequence

from sharding.dataset import Component, IndexedSample

__all__ = ["LONGEST_ID", "TarBuilder"]

BLOCK = tarfile.BLOCKSIZE
LONGEST_ID = 90
"""Characters of an id that fit a plain header's name with the extension."""


class TarBuilder:
    """Builds a tar of samples in memory, and the index that belongs to it."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._size = 0
        self.samples: list[IndexedSample] = []

    def add(self, id_: str, files: Sequence[tuple[str, bytes]]) -> int:
        """Appends a sample: its id and (extension, data) of each of its files.

        Returns the CRC-32 of all that it adds to the tar, headers and padding included.
        """
        components = []
        first = len(self._chunks)
        for extension, data in files:
            info = tarfile.TarInfo(f"{id_}.{extension}")
            info.size = len(data)
            info.mode = 0o644
            self._append(info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
            components.append(Component(extension, self._size, len(data), info.name))
            self._append(data)
            self._append(bytes(-len(data) % BLOCK))
        self.samples.append(IndexedSample(id_, components))
        crc = 0
        for chunk in self._chunks[first:]:
            crc = zlib.crc32(chunk, crc)
        return crc

    def finish(self) -> bytes:
        """The whole tar, ended as tar ends it: two empty blocks, filled up to a record."""
        end = 2 * BLOCK
        end += -(self._size + end) % tarfile.RECORDSIZE
        return b"".join([*self._chunks, bytes(end)])

    def _append(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)
