"""Is a photo fit for training or for an answer, and what has to be done to it?

Every photo is decoded before it is written: the GPU decoder cannot skip a bad one, which ends the
whole run. So what is doubtful is found here, with libjpeg-turbo told to take no warning lightly.
A good photo's bytes are kept as they are, unless it is grey, CMYK, of a sampling that not every
decoder knows, rotated by its EXIF data, or is to be resized. A PNG or WebP is bad, unless whoever
prepares it asks for a JPEG of it. Whatever a photo holds, it is good or a `BadPhoto` that says why.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bintally.dataset.conversion import convertible_kind, decode_convertible, size_by_header
from bintally.dataset.jpeg import JPEG, START_OF_SCAN, orientation, read_frame, what_is
from bintally.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

__all__ = [
    "CMYK",
    "MAX_PIXELS",
    "BadPhoto",
    "Header",
    "Photo",
    "Resize",
    "check_photo",
    "prepare_photo",
    "read_header",
    "stored",
]

MAX_PIXELS = 50_000_000
"""A larger photo is refused by its header, before its pixels would fill the memory."""

LONGEST_SIDE = 4096
"""Of a photo that is stored resized: 50 MB of pixels, while every thread of a build has one."""

QUALITY = 95
"""Of a photo that had to be encoded again; at 90 the mean error grows from 1.6 to 2.0 of 255."""


class BadPhoto(ValueError):
    """Why a photo is not put into a shard."""


@dataclass(frozen=True)
class Photo:
    """A photo as it goes into a shard."""

    data: bytes
    """JPEG."""
    width: int
    """Pixels of the source's photo, upright."""
    height: int
    note: str | None
    """What was done to it beside resizing; None if nothing."""


@dataclass(frozen=True)
class Header:
    """What a JPEG says of itself before its pixels."""

    width: int
    """Pixels, as it is stored."""
    height: int
    colorspace: str
    """As libjpeg-turbo calls it: `YCbCr`, `Gray`, `CMYK`, …"""
    rarity: str | None = None
    """What not every decoder knows: arithmetic coding, or 4:4:1 sampling."""


@dataclass(frozen=True)
class Resize:
    """To which size photos are stored: `width`×`height`, or the short side `short`."""

    width: int = 0
    height: int = 0
    short: int = 0

    @classmethod
    def parse(cls, text: str) -> Resize | None:
        """Reads `--resize`: `256` is the short side, `224x224` the exact size, `` is none."""
        if not text:
            return None
        match = re.fullmatch(r"([1-9][0-9]*)(?:x([1-9][0-9]*))?", text)
        if match is None:
            raise UsageError(f"--resize {text}: write 256 for the short side, or 224x224")
        sides = [side for side in match.groups() if side is not None]
        # Of a number with thousands of digits Python makes no int.
        if any(len(side) > 9 or int(side) > LONGEST_SIDE for side in sides):
            raise UsageError(
                f"--resize {text[:30]}: at most {LONGEST_SIDE:,} pixels a side, for dozens of "
                "photos are in memory at a time; to keep photos as they are, leave --resize out"
            )
        first, *second = map(int, sides)
        return cls(first, *second) if second else cls(short=first)

    def of(self, width: int, height: int) -> tuple[int, int]:
        """The size to store for a photo. By its short side a photo is never enlarged."""
        if not self.short:
            return self.width, self.height
        shorter = min(width, height)
        if shorter <= self.short:
            return width, height
        return round(width * self.short / shorter), round(height * self.short / shorter)


@contextmanager
def _as_bad_photo() -> Iterator[None]:
    """Around the work on one photo: what surprises there is the photo's fault, and names it."""
    try:
        yield
    except (BadPhoto, MemoryError, ImportError):
        raise  # The latter two are the machine's.
    except Exception as error:
        lines = str(error).splitlines() or [""]
        raise BadPhoto(f"photo cannot be read: {type(error).__name__}: {lines[0]}") from error


@_as_bad_photo()
def read_header(data: bytes) -> Header:
    """Reads a JPEG's header, in microseconds. Raises `BadPhoto` for what is none."""
    import simplejpeg

    if not data:
        raise BadPhoto("photo has zero bytes")
    if not data.startswith(JPEG):
        raise BadPhoto(f"photo is {what_is(data)}, not a JPEG")
    if data.count(START_OF_SCAN) > MAX_SCANS:
        raise BadPhoto(f"photo has more than {MAX_SCANS} scans")
    frame = read_frame(data)
    if frame is not None and frame.complaint is not None:
        raise BadPhoto(f"photo {frame.complaint}")
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    except ValueError as error:
        if frame is not None:
            _refuse_large(frame.width, frame.height)
        if frame is not None and (sampling := frame.rare_sampling) is not None:
            raise BadPhoto(
                f"photo has the sampling {sampling}, which libjpeg-turbo does not decode"
            ) from error
        raise BadPhoto(f"photo has a damaged header: {error}") from error
    except KeyError:
        # simplejpeg decodes 4:4:1, and has no name for it.
        if frame is None:
            raise
        colorspace = "CMYK" if len(frame.sampling) == 4 else "YCbCr"
        return Header(frame.width, frame.height, colorspace, "4:4:1 sampling")
    arithmetic = frame is not None and frame.is_arithmetic
    return Header(width, height, colorspace, "arithmetic coding" if arithmetic else None)


def _refuse_large(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadPhoto(f"photo has {width}x{height} pixels, more than {MAX_PIXELS:,}")


MAX_SCANS = 100
"""A progressive JPEG has ten scans or so. Each is a pass over all pixels, for a few bytes."""


def check_photo(data: bytes) -> Header:
    """Decodes a JPEG to its last coefficient; its header.

    Raises `BadPhoto` with the reason that the catalog then gives.
    """
    header = read_header(data)
    # All of the entropy-coded data is read at any scale; one pixel for 64 is the cheapest.
    shown = "CMYK" if header.colorspace in CMYK else "GRAY"
    _decode_strictly(data, header, colorspace=shown, min_height=1, min_width=1)
    return header


CMYK = ("CMYK", "YCCK")


@_as_bad_photo()
def _decode_strictly(data: bytes, header: Header, **how: Any) -> NDArray[np.uint8]:
    import simplejpeg

    _refuse_large(header.width, header.height)
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, strict=True, **how)
    except ValueError as error:
        raise BadPhoto(f"photo does not decode: {error}") from error
    return pixels


def stored(data: bytes, header: Header) -> bytes:
    """The bytes that a shard would hold for a photo, so that it is counted as it is trained on.

    An ordinary photo's own. Raises `BadPhoto` where another one does not decode.
    """
    return prepare_photo(data, None).data if _changes(data, header) else data


def _changes(data: bytes, header: Header) -> list[str]:
    """What has to be done to a photo so that every decoder reads it alike."""
    changes = []
    if header.colorspace == "Gray":
        changes.append("grey, stored as RGB")
    elif header.colorspace in CMYK:
        changes.append(f"{header.colorspace}, stored as RGB")
    if header.rarity is not None:
        changes.append(f"{header.rarity}, encoded again")
    if orientation(data) != 1:
        changes.append(TURNED)
    return changes


TURNED = "rotated as its EXIF says"


def prepare_photo(data: bytes, resize: Resize | None, *, convert: bool = False) -> Photo:
    """Checks a photo, and makes it RGB, upright, and of the size to store.

    With `convert` it may be a PNG or a WebP, of which the first frame becomes a JPEG, with what is
    transparent over white. What a photo is, its content says. Raises `BadPhoto` as `check_photo`
    does.
    """
    kind = convertible_kind(data) if convert else None
    if kind is not None:
        upright, changes = _convert(data, kind)
    else:
        header = read_header(data)
        changes = _changes(data, header)
        if not changes and resize is None:
            check_photo(data)
            return Photo(data, header.width, header.height, None)
        upright = _decode(data, header)
    width, height = upright.size
    if resize is not None:
        upright = _resized(upright, resize.of(width, height))
    return Photo(_encode(upright), width, height, "; ".join(changes) or None)


def _encode(photo: Image.Image) -> bytes:
    import numpy as np
    import simplejpeg

    encoded: bytes = simplejpeg.encode_jpeg(
        np.asarray(photo), quality=QUALITY, colorsubsampling="420", fastdct=False
    )
    return encoded


def _decode(data: bytes, header: Header) -> Image.Image:
    """An upright RGB image without metadata. To decode it whole is to check it."""
    from PIL import Image

    if header.colorspace in CMYK:
        # Adobe's convention, which all programs follow: 255 is no ink.
        inks = 255 - _decode_strictly(data, header, colorspace="CMYK")
        size = (header.width, header.height)
        photo = Image.frombytes("CMYK", size, inks.tobytes()).convert("RGB")
    else:
        photo = Image.fromarray(_decode_strictly(data, header))
    return _upright(photo, orientation(data))


@_as_bad_photo()
def _convert(data: bytes, kind: str) -> tuple[Image.Image, list[str]]:
    """An upright RGB image of a PNG or WebP, and what was done."""
    width, height = size_by_header(data)
    if not width * height:
        raise BadPhoto(f"photo is a {kind} with a damaged header")
    _refuse_large(width, height)
    try:
        photo, lies, is_animated = decode_convertible(data)
    except (OSError, SyntaxError, ValueError) as error:
        raise BadPhoto(f"photo is a {kind} that does not decode: {error}") from error
    changes = [f"{kind}, {'first frame ' if is_animated else ''}stored as JPEG"]
    if lies != 1:
        changes.append(TURNED)
    return _upright(photo, lies), changes


def _upright(photo: Image.Image, orientation: int) -> Image.Image:
    from PIL import Image

    turn = (None, *TURNS)[orientation - 1]
    return photo if turn is None else photo.transpose(Image.Transpose[turn])


TURNS = (
    "FLIP_LEFT_RIGHT",
    "ROTATE_180",
    "FLIP_TOP_BOTTOM",
    "TRANSPOSE",
    "ROTATE_270",
    "TRANSVERSE",
    "ROTATE_90",
)
"""What makes a photo of orientation 2 to 8 upright."""


def _resized(photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Antialiased and bilinear, as the loader resizes: stored at its size, it resizes no more."""
    from PIL import Image

    return photo if photo.size == size else photo.resize(size, Image.Resampling.BILINEAR)
