"""A shard's tar and its index, made in one pass.

Plain USTAR with nothing of the moment or machine in it (no times, owners or names of users), so
that the same samples give the same bytes, and without PAX headers, which would add two blocks and
more to every member.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Sequence

from bintally.dataset.index import Component, IndexedSample

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
            name = f"{id_}.{extension}"
            self._append(_header(name, len(data)))
            components.append(Component(extension, self._size, len(data), name))
            self._append(data)
            self._append(bytes(-len(data) % BLOCK))
        self.samples.append(IndexedSample(id_, components))
        crc = 0
        for chunk in self._chunks[first:]:
            crc = zlib.crc32(chunk, crc)
        return crc

    def finish(self) -> list[bytes]:
        """The whole tar in pieces, ended as tar ends it: two empty blocks, filled up to a record.

        In pieces, for a copy of a whole shard would cost more than all of its headers.
        """
        end = 2 * BLOCK
        end += -(self._size + end) % tarfile.RECORDSIZE
        return [*self._chunks, bytes(end)]

    def _append(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)


def _header(name: str, size: int) -> bytes:
    """A file's USTAR header, byte for byte what `tarfile` makes, in a tenth of its time."""
    encoded = name.encode("ascii")
    if len(encoded) > LONGEST_NAME or size > LARGEST:
        raise ValueError(f"{name}: name or size does not fit a plain tar header")
    head = b"%b0000644\x000000000\x000000000\x00%011o\x0000000000000\x00" % (
        encoded.ljust(LONGEST_NAME, b"\0"),
        size,
    )
    # The checksum counts its own eight bytes as spaces.
    checksum = sum(head) + 8 * 0x20 + TAIL_SUM
    return b"%b%06o\x00 %b" % (head, checksum, TAIL)


LONGEST_NAME = 100
LARGEST = 8**11 - 1
TAIL = (b"0" + bytes(100) + b"ustar\x0000").ljust(356, b"\0")
"""What follows the checksum: a plain file, no link, no owner, no device."""
TAIL_SUM = sum(TAIL)
