"""What a JPEG says of itself before its first scan. Pure, and of any bytes: nothing here raises for
what a photo holds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = [
    "JPEG",
    "START_OF_SCAN",
    "Frame",
    "orientation",
    "read_frame",
    "tiff_orientation",
    "what_is",
]

JPEG = b"\xff\xd8"
START_OF_SCAN = b"\xff\xda"

MAGIC = (
    (b"\x89PNG", "a PNG"),
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (b"%PDF", "a PDF"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"PK\x03\x04", "a zip"),
)
"""First bytes of what people name .jpg."""


def what_is(data: bytes) -> str:
    """What a file that is no JPEG is, as far as its first bytes tell."""
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "a WebP"
    if data[4:8] == b"ftyp":
        brand = data[8:12].decode("ascii", "replace")
        return {"avif": "an AVIF", "heic": "a HEIC", "heix": "a HEIC"}.get(brand, "an MPEG-4 file")
    return next((name for magic, name in MAGIC if data.startswith(magic)), "something else")


@dataclass(frozen=True)
class Frame:
    """A JPEG's frame header, as it is written."""

    marker: int
    bits: int
    height: int
    width: int
    sampling: Sequence[tuple[int, int]]
    """Of each component, horizontal and vertical."""

    @property
    def complaint(self) -> str | None:
        """Why libjpeg-turbo, which itself gives no reason, does not decode a photo of this kind to
        eight bits; None if it may."""
        if self.marker in LOSSLESS:
            return "is a lossless JPEG, which is not for photos"
        if self.marker in HIERARCHICAL:
            return "is a hierarchical JPEG, which no program decodes"
        if self.bits != 8:
            return f"has {self.bits} bits a sample, not 8"
        if not self.width * self.height:
            return f"has {self.width}x{self.height} pixels by its header"
        if len(self.sampling) not in (1, 3, 4):
            return f"has {len(self.sampling)} colour components, not 1, 3 or 4"
        return None

    @property
    def rare_sampling(self) -> str | None:
        """As JPEG tools write it (4:2:0 is `2x2,1x1,1x1`); None for those that have a name, and
        for what the standard does not allow."""
        whole = all(1 <= h <= 4 and 1 <= v <= 4 for h, v in self.sampling)
        fits = sum(h * v for h, v in self.sampling) <= 10
        first, *others = self.sampling
        named = first in NAMED_SAMPLINGS and set(others) <= {(1, 1)}
        if named or not whole or not fits:
            return None
        return ",".join(f"{h}x{v}" for h, v in self.sampling)

    @property
    def is_arithmetic(self) -> bool:
        """Coded arithmetically, as hardly any program writes it, and not every one reads it."""
        return self.marker in ARITHMETIC


FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
LOSSLESS = (0xC3, 0xCB)
HIERARCHICAL = (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF)
ARITHMETIC = (0xC9, 0xCA)
NAMED_SAMPLINGS = ((1, 1), (2, 1), (2, 2), (1, 2), (4, 1), (1, 4))
"""Of the brightness: 4:4:4, 4:2:2, 4:2:0, 4:4:0, 4:1:1 and 4:4:1."""
APP1 = 0xE1


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment before a JPEG's first scan."""
    at = len(JPEG)
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != START_OF_SCAN[1]:
        if data[at + 1] == 0xFF:  # A marker may have any number of these before it.
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at + 1], data[at + 4 : end]
        at = end


def read_frame(data: bytes) -> Frame | None:
    """The first frame header of a JPEG; None where there is none, or part of one."""
    for marker, content in _segments(data):
        if marker in FRAMES:
            if len(content) < 6 or len(content) != 6 + 3 * content[5]:
                return None
            bits, height, width = content[0], content[1:3], content[3:5]
            factors = content[7::3]
            return Frame(
                marker,
                bits,
                int.from_bytes(height, "big"),
                int.from_bytes(width, "big"),
                [(factor >> 4, factor & 15) for factor in factors],
            )
    return None


def orientation(data: bytes) -> int:
    """How a photo lies, by its EXIF data: 1 to 8, where 1 is upright.

    Damaged EXIF data, and an orientation that is no number, are as none: other programs show such
    a photo as it is stored.
    """
    blocks = (content for marker, content in _segments(data) if marker == APP1)
    exif = next((content for content in blocks if content.startswith(EXIF)), b"")
    return tiff_orientation(exif.removeprefix(EXIF))


def tiff_orientation(tiff: bytes) -> int:
    """As `orientation`, of EXIF data by themselves."""
    order = BYTE_ORDERS.get(tiff[:4])
    if order is None:
        return 1
    (first,) = _unpack(f"{order}I", tiff, 4)
    (number,) = _unpack(f"{order}H", tiff, first)
    for at in range(first + 2, min(first + 2 + 12 * number, len(tiff)), 12):
        tag, kind, count, value = _unpack(f"{order}HHIH", tiff, at)
        if (tag, kind, count) == (ORIENTATION, SHORT, 1):
            return value if value in range(1, 9) else 1
    return 1


def _unpack(form: str, data: bytes, at: int) -> tuple[int, ...]:
    """Numbers at an offset; what lies beyond the end is zero."""
    size = struct.calcsize(form)
    return struct.unpack(form, data[at : at + size].ljust(size, b"\0"))


EXIF = b"Exif\0\0"
BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
ORIENTATION = 0x0112
SHORT = 3
