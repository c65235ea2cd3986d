"""Photos and metadata as nobody means them: mutations of good ones, drawn by a seed."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL import Image

__all__ = ["encodings", "mutated_metadata", "mutated_photos"]


def encodings(photo: bytes, side: int) -> list[bytes]:
    """A photo at `side`×`side` pixels, in the ways that JPEGs are commonly written."""
    small = Image.open(io.BytesIO(photo)).convert("RGB").resize((side, side))
    turned = Image.Exif()
    turned[0x0112] = 6
    turned[0x010E] = "a description"
    written = []
    for mode, options in (
        ("RGB", {}),
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": 0, "restart_marker_blocks": 2}),
        ("RGB", {"exif": turned}),
        ("L", {"exif": turned, "comment": b"grey"}),
        ("CMYK", {}),
    ):
        sink = io.BytesIO()
        small.convert(mode).save(sink, "JPEG", quality=85, **options)
        written.append(sink.getvalue())
    return written


def mutated_photos(photos: Sequence[bytes], number: int, seed: int) -> Iterator[bytes]:
    """`number` photos, each with one to three things wrong; some come out good."""
    draw = random.Random(seed)
    for _ in range(number):
        data = draw.choice(photos)
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            data = draw.choice((*BYTES, *JPEG))(draw, data)
        yield data


def mutated_metadata(files: Sequence[bytes], number: int, seed: int) -> Iterator[bytes]:
    """`number` JSON files with something wrong in their bytes, their values or their structure."""
    draw = random.Random(seed)
    for _ in range(number):
        data = draw.choice(files)
        change = draw.choice((*BYTES, *TEXT, _change_value, _change_value, _change_value))
        yield change(draw, data)


def _flip(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5, 30)) if data else 0):
        changed[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(changed)


def _flip_early(draw: random.Random, data: bytes) -> bytes:
    return _flip(draw, data[:200]) + data[200:]


def _cut(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _cut_out(draw: random.Random, data: bytes) -> bytes:
    first, last = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return data[:first] + data[last:]


def _insert(draw: random.Random, data: bytes) -> bytes:
    at = draw.randrange(len(data) + 1)
    what = draw.choice((draw.randbytes(draw.randrange(40)), bytes(300), data[:100]))
    return data[:at] + what + data[at:]


def _append(draw: random.Random, data: bytes) -> bytes:
    return data + draw.choice((bytes(draw.randrange(600)), b"\r\n", data))


Mutation = Callable[[random.Random, bytes], bytes]
BYTES: Sequence[Mutation] = (_flip, _cut, _cut_out, _insert, _append)


def _segments(data: bytes) -> list[bytes]:
    """The pieces before a JPEG's scan, each with its marker, and all the rest."""
    pieces, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        pieces.append(data[at:end])
        at = end
    return [*pieces, data[at:]]


def _change_segments(draw: random.Random, data: bytes) -> bytes:
    pieces = _segments(data)
    at = draw.randrange(len(pieces))
    piece = bytearray(pieces[at])
    match draw.randrange(6):
        case 0:
            del pieces[at]
        case 1:
            pieces.insert(at, pieces[draw.randrange(len(pieces))])
        case 2:
            draw.shuffle(pieces)
        case 3 if len(piece) > 1:
            piece[1] = draw.randrange(0x100)
        case 4 if len(piece) > 3:
            piece[2:4] = struct.pack(">H", draw.choice((0, 1, 2, 3, 65535, draw.randrange(100))))
        case _ if len(piece) > 4:
            piece[draw.randrange(4, len(piece))] = draw.randrange(256)
    if at < len(pieces) and draw.randrange(6) > 2:
        pieces[at] = bytes(piece)
    return b"".join(pieces)


def _change_frame(draw: random.Random, data: bytes) -> bytes:
    """Marker, bits, size, components, sampling and tables of the frame header."""
    pieces = _segments(data)
    frames = [i for i, piece in enumerate(pieces) if piece[1:2] in (b"\xc0", b"\xc1", b"\xc2")]
    if not frames or len(pieces[frames[0]]) < 13:
        return _flip(draw, data)
    frame = bytearray(pieces[frames[0]])
    match draw.randrange(5):
        case 0:
            frame[1] = draw.choice([*range(0xC0, 0xD0)])
        case 1:
            frame[4] = draw.choice((0, 2, 7, 12, 16, 255))
        case 2:
            size = [draw.choice((0, 1, 7, 48, 4000, 30000, 65535)) for _ in range(2)]
            frame[5:9] = struct.pack(">HH", *size)
        case 3:
            frame[9] = draw.choice((0, 1, 2, 3, 4, 5, 255))
        case _:
            for at in range(11, len(frame), 3):
                frame[at] = draw.choice((0x11, 0x11, 0x12, 0x14, 0x21, 0x22, 0x31, 0x41, 0x44, 0))
    pieces[frames[0]] = bytes(frame)
    return b"".join(pieces)


def _put_exif(draw: random.Random, data: bytes) -> bytes:
    """EXIF data of plausible tags with any types, counts and values, in front of all else."""
    order = draw.choice("<>")
    tags = (0x0112, 0x0112, 0x011A, 0x011B, 0x0128, 0x8769, 0x8825, 0x010E, 0x0201)
    entries = b"".join(
        struct.pack(
            f"{order}HHI4s",
            draw.choice(tags),
            draw.choice((0, 1, 2, 3, 3, 3, 4, 5, 7, 10, 12, 13, 99)),
            draw.choice((0, 1, 1, 1, 2, 5, 70_000, 2**32 - 1)),
            draw.choice((draw.randbytes(4), struct.pack(f"{order}HH", draw.randrange(10), 0))),
        )
        for _ in range(draw.randrange(6))
    )
    number = draw.choice((len(entries) // 12, len(entries) // 12, 0, 65535))
    first = draw.choice((8, 8, 8, 0, 7, 2**32 - 1))
    start = {"<": b"II*\0", ">": b"MM\0*"}[order]
    start = draw.choice((start, start, start, b"no TIFF", b""))
    tiff = start + struct.pack(f"{order}IH", first, number) + entries
    content = b"Exif\0\0" + tiff[: draw.choice((None, None, draw.randrange(len(tiff) + 1)))]
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + data[2:]


JPEG: Sequence[Mutation] = (
    _flip_early,
    _change_segments,
    _change_segments,
    _change_frame,
    _change_frame,
    _put_exif,
    _put_exif,
)


def _wrap(draw: random.Random, data: bytes) -> bytes:
    text = data.decode()
    return draw.choice(
        (
            b"\xef\xbb\xbf" + data,
            text.encode(draw.choice(("utf-16", "utf-32", "utf-16-be", "cp500"))),
            gzip.compress(data, mtime=0),
            b"[" * (depth := draw.choice((5, 190, 205, 900, 5000, 100_000))) + b"]" * depth,
            data.replace(b'"', b"'"),
            data.replace(b"EXPECTED", "EXPECT\N{LATIN SMALL LETTER E WITH ACUTE}D".encode()),
            data + data,
            b"\0" * len(data),
            b"<html><body>503</body></html>",
            b'{"EXPECTED_QUANTITY": 9, ' + data.lstrip()[1:],
        )
    )


def _replace_number(draw: random.Random, data: bytes) -> bytes:
    """Where JSON has a number, something that JSON or Python may or may not take for one."""
    pieces = data.split(b": ")
    at = draw.randrange(len(pieces))
    odd = (b"NaN", b"-Infinity", b"1e400", b"-0", b"2.0", b"01", b"9" * 4400, b"1_0", b"0x3", b"")
    rest = pieces[at].lstrip(b"0123456789.")
    pieces[at] = draw.choice(odd) + rest
    return b": ".join(pieces)


TEXT: Sequence[Mutation] = (_wrap, _replace_number)


def _change_value(draw: random.Random, data: bytes) -> bytes:
    """A value, or a key, somewhere in the tree becomes another one."""
    value = json.loads(data)
    node: Any = value
    while True:
        children = [key for key, child in node.items() if isinstance(child, dict) and child]
        if not children or draw.random() < 0.4:
            break
        node = node[draw.choice(children)]
    key = draw.choice([*node, "EXPECTED_QUANTITY", "BIN_FCSKU_DATA"])
    match draw.randrange(4):
        case 0:
            node.pop(key, None)
        case 1:
            node[draw.choice(ODD_KEYS)] = node.pop(key, None)
        case _:
            node[key] = draw.choice(ODD_VALUES)
    return json.dumps(value, ensure_ascii=draw.random() < 0.7).encode("utf-8", "surrogatepass")


ODD_KEYS = (
    "",
    "\ud83d",
    "\udfff",
    "\0",
    "a\nb",
    "é" * 300,
    "__proto__",
    "EXPECTED_QUANTITY",
    "x" * 9999,
)
ODD_VALUES: Sequence[Any] = (
    *(None, True, False, 0, -1, 5, 6, 111, 2**31, 2**63, 10**400, 2.5, float("nan"), float("inf")),
    *("", "3", "\ud800", [], {}, [[[]]], ["B1", 3], {"": None}, {"\udead": 1}, {"a": {"b": {}}}),
)
