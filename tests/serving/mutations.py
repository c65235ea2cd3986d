"""Photos that something happened to: every one is counted, or refused by name."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Literal

__all__ = ["flat_photo", "mutated"]

Random = random.Random


def mutated(photos: Sequence[bytes], number: int, seed: int) -> Iterator[bytes]:
    """`number` photos with one to three mutations each, the same ones for the same seed."""
    random_ = Random(seed)
    kinds = [_flip, _flip_in_head, _cut, _hole, _twice, _markers, _lengths, _sampling, _exif]
    for _ in range(number):
        photo = random_.choice(photos)
        for _ in range(random_.choice((1, 1, 1, 2, 3))):
            photo = random_.choice(kinds)(random_, photo)
        yield photo


def _flip(r: Random, photo: bytes) -> bytes:
    data = bytearray(photo)
    for _ in range(r.choice((1, 1, 5, 50))):
        data[r.randrange(len(data))] ^= 1 << r.randrange(8)
    return bytes(data)


def _flip_in_head(r: Random, photo: bytes) -> bytes:
    data = bytearray(photo)
    for _ in range(r.choice((1, 2, 4))):
        data[r.randrange(min(len(data), 700))] = r.choice((0, 1, 2, 4, 17, 127, 128, 255))
    return bytes(data)


def _cut(r: Random, photo: bytes) -> bytes:
    return photo[: r.randrange(1, len(photo) + 1)]


def _hole(r: Random, photo: bytes) -> bytes:
    at = r.randrange(len(photo))
    return photo[:at] + photo[at + r.choice((1, 2, 64, 1000)) :]


def _twice(r: Random, photo: bytes) -> bytes:
    at = r.randrange(len(photo))
    return photo[:at] + photo[at : at + r.choice((2, 20, 500))] * 2 + photo[at:]


def _markers(r: Random, photo: bytes) -> bytes:
    """Another marker in the place of one, or one in a place that has none."""
    places = [i for i in range(len(photo) - 1) if photo[i] == 0xFF and photo[i + 1] >= 0xC0]
    data = bytearray(photo)
    at = r.choice(places) if places and r.random() < 0.7 else r.randrange(len(data))
    data[at : at + 2] = bytes((0xFF, r.randrange(0xC0, 0xFF)))
    return bytes(data)


def _lengths(r: Random, photo: bytes) -> bytes:
    """A segment that says that it is longer or shorter than it is."""
    places = [i for i in range(min(len(photo) - 3, 2000)) if photo[i] == 0xFF and photo[i + 1]]
    data = bytearray(photo)
    at = r.choice(places) if places else 0
    data[at + 2 : at + 4] = r.choice((0, 1, 2, 3, 16, 255, 0xFFFF, r.randrange(65536))).to_bytes(2)
    return bytes(data)


def _sampling(r: Random, photo: bytes) -> bytes:
    """Other numbers of samples, components, bits or pixels in the frame's header."""
    at = next((i for m in (0xC0, 0xC2) if (i := photo.find(bytes((0xFF, m)))) > 0), 0)
    data = bytearray(photo)
    place = at + r.choice((1, 4, 5, 7, 9, 11, 14, 17))
    if place < len(data):
        data[place] = r.choice((0, 1, 3, 4, 8, 12, 0x11, 0x14, 0x21, 0x41, 0x44, 0xC9, 0xFF))
    return bytes(data)


def _exif(r: Random, photo: bytes) -> bytes:
    """EXIF data that are odd, or none."""
    order = r.choice((b"MM", b"II", b"XX"))
    big: Literal["little", "big"] = "little" if order == b"II" else "big"

    def number(size: int) -> bytes:
        value = r.choice((0, 1, 6, 8, 9, 0x0112, 0xFFFF, r.randrange(65536)))
        return value.to_bytes(4, big)[-size:] if big == "big" else value.to_bytes(4, big)[:size]

    entries = b"".join(
        (b"\x01\x12" if big == "big" else b"\x12\x01")
        + number(2)
        + number(4)
        + r.choice((number(2) + b"\0\0", r.randbytes(4)))
        for _ in range(r.choice((0, 1, 3)))
    )
    start = order + r.choice((b"\0*", b"*\0", b"..")) + number(4)
    content = r.choice(
        (
            start + r.randbytes(2) + entries,
            start + number(2) + entries + b"\0\0\0\0",
            r.randbytes(r.randrange(99)),
            b"",
        )
    )
    segment = b"Exif\0\0" + content
    at = 2 if r.random() < 0.5 else 4 + int.from_bytes(photo[4:6])
    return photo[:at] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2) + segment + photo[at:]


def flat_photo(sampling: Sequence[tuple[int, int]]) -> bytes:
    """A whole photo of one grey tone, 64×64, whose components have these samplings."""
    h_max, v_max = max(h for h, _ in sampling), max(v for _, v in sampling)
    units = -(-64 // (8 * h_max)) * -(-64 // (8 * v_max))
    # One code in each table, of a bit: no difference of DC, and the end of a block.
    bits = "00" * units * sum(h * v for h, v in sampling)
    bits += "1" * (-len(bits) % 8)
    table = bytes([1] + [0] * 15) + b"\0"
    number = bytes([len(sampling)])
    parts = [bytes((i, h << 4 | v, 0)) for i, (h, v) in enumerate(sampling, 1)]
    scans = b"".join(bytes((i, 0)) for i in range(1, len(sampling) + 1))

    def segment(marker: int, content: bytes) -> bytes:
        return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2) + content

    return b"".join(
        (
            b"\xff\xd8",
            segment(0xDB, b"\0" + bytes([1] * 64)),
            segment(0xC0, b"\x08\x00\x40\x00\x40" + number + b"".join(parts)),
            segment(0xC4, b"\x00" + table),
            segment(0xC4, b"\x10" + table),
            segment(0xDA, number + scans + b"\0\x3f\0"),
            bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)),
            b"\xff\xd9",
        )
    )
