"""A shard's tar and its index, made in one pass, and read again.

Plain USTAR with nothing of the moment or machine in it (no times, owners or names of users), so
that the same samples give the same bytes, and without PAX headers, which would add two blocks and
more to every member.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bintally.dataset.index import INDEX_VERSION, Component, IndexedSample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EXTENSIONS", "LONGEST_ID", "TarBuilder", "fit_together"]

BLOCK = tarfile.BLOCKSIZE
EXTENSIONS = ("jpg", "cls", "json")
"""Of a sample's files, in their order."""
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
        return [*self._chunks, _end(self._size)]

    def _append(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)


def fit_together(tar: bytes, index: bytes) -> bool:
    """Whether a tar and an index are what `TarBuilder` makes of samples of `EXTENSIONS`: the index
    in every byte, the tar in all but what its files hold.

    In a tenth of the time that `tarfile` takes.
    """
    import numpy as np

    fields = index.split()[2:]
    try:
        text = b" ".join(fields[3::12]).decode("ascii")
        numbers = [*map(int, fields[2::4])]
    except ValueError:
        return False
    ids = [name.removesuffix(".jpg") for name in text.split()]
    names = [f"{id_}.{extension}" for id_ in ids for extension in EXTENSIONS]
    if (
        not all(ids)
        or text.count(".") != len(ids)
        or "\0" in text
        or max(map(len, names), default=0) > LONGEST_NAME
        or len(numbers) != len(names)
        or not 0 <= min(numbers, default=0) <= max(numbers, default=0) <= LARGEST
    ):
        return False
    sizes = np.array(numbers, np.int64)
    padded = sizes + -sizes % BLOCK
    offsets = np.cumsum(BLOCK + padded) - padded
    parts = [
        f"{extension} {offset} {size} {name}"
        for extension, offset, size, name in zip(
            [*EXTENSIONS] * len(ids), offsets.tolist(), numbers, names, strict=True
        )
    ]
    lines = [f"{INDEX_VERSION} {len(ids)}", *map(" ".join, zip(*[iter(parts)] * 3, strict=True))]
    if index != ("\n".join(lines) + "\n").encode():
        return False
    end = int(offsets[-1] + padded[-1]) if ids else 0
    if tar[end:] != _end(end):
        return False
    blocks = np.frombuffer(tar, np.uint8).reshape(-1, BLOCK)
    return np.array_equal(blocks[offsets // BLOCK - 1], _headers(names, sizes))


def _end(size: int) -> bytes:
    """What follows `size` bytes of files: two empty blocks, and what fills up a record."""
    end = 2 * BLOCK
    return bytes(end + -(size + end) % tarfile.RECORDSIZE)


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


def _headers(names: Sequence[str], sizes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(files, 512): `_header` of each, in a tenth of its time."""
    import numpy as np

    headers = np.tile(np.frombuffer(_header("", 0), np.uint8), (len(names), 1))
    fields = headers[:, :SUM_AT]
    encoded = np.array(names, f"S{LONGEST_NAME}")
    fields[:, :LONGEST_NAME] = encoded.view(np.uint8).reshape(-1, LONGEST_NAME)
    fields[:, SIZE_AT : SIZE_AT + SIZE_DIGITS] = _octal(sizes, SIZE_DIGITS)
    checksums = fields.sum(1, np.int64) + 8 * 0x20 + TAIL_SUM
    headers[:, SUM_AT : SUM_AT + SUM_DIGITS] = _octal(checksums, SUM_DIGITS)
    return headers


def _octal(numbers: NDArray[np.int64], digits: int) -> NDArray[np.int64]:
    """(numbers, digits): each number's digits, in ASCII."""
    import numpy as np

    return (numbers[:, None] >> 3 * np.arange(digits)[::-1] & 7) + ord("0")


LONGEST_NAME = 100
SIZE_AT, SIZE_DIGITS = 124, 11
SUM_AT, SUM_DIGITS = 148, 6
LARGEST = 8**SIZE_DIGITS - 1
TAIL = (b"0" + bytes(100) + b"ustar\x0000").ljust(356, b"\0")
"""What follows the checksum: a plain file, no link, no owner, no device."""
TAIL_SUM = sum(TAIL)
