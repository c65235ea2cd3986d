"""Is a photo fit for training, and what has to be done to it?

Every photo is decoded before it is written: the GPU decoder cannot skip a bad one, which ends the
whole run. So what is doubtful is found here, with libjpeg-turbo told to take no warning lightly.
A good photo's bytes are kept as they are, unless it is grey, CMYK, rotated by its EXIF data, or is
to be resized.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bintally.command import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

__all__ = ["BadPhoto", "Photo", "Resize", "check_photo", "prepare_photo"]

MAX_PIXELS = 50_000_000
"""A larger photo is refused by its header, before its pixels would fill the memory."""

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
        if match := re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text):
            first, second = match.groups()
            return cls(int(first), int(second)) if second else cls(short=int(first))
        raise UsageError(f"--resize {text}: write 256 for the short side, or 224x224")

    def of(self, width: int, height: int) -> tuple[int, int]:
        """The size to store for a photo. By its short side a photo is never enlarged."""
        if not self.short:
            return self.width, self.height
        shorter = min(width, height)
        if shorter <= self.short:
            return width, height
        return round(width * self.short / shorter), round(height * self.short / shorter)


def check_photo(data: bytes) -> tuple[int, int, str]:
    """Decodes a JPEG to its last coefficient; its width, height and colour space.

    Raises `BadPhoto` with the reason that the catalog then gives.
    """
    width, height, colorspace = _read_header(data)
    # All of the entropy-coded data is read at any scale; one pixel for 64 is the cheapest.
    shown = "CMYK" if colorspace in CMYK else "GRAY"
    _decode_strictly(data, colorspace=shown, min_height=1, min_width=1)
    return width, height, colorspace


def _read_header(data: bytes) -> tuple[int, int, str]:
    import simplejpeg

    if not data:
        raise BadPhoto("photo has zero bytes")
    if not data.startswith(b"\xff\xd8"):
        raise BadPhoto("photo is not a JPEG")
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    except ValueError as error:
        raise BadPhoto(f"photo has a damaged header: {error}") from error
    if width * height > MAX_PIXELS:
        raise BadPhoto(f"photo has {width}x{height} pixels, more than {MAX_PIXELS:,}")
    return width, height, colorspace


def _decode_strictly(data: bytes, **how: Any) -> NDArray[np.uint8]:
    import simplejpeg

    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, strict=True, **how)
    except ValueError as error:
        raise BadPhoto(f"photo does not decode: {error}") from error
    return pixels


CMYK = ("CMYK", "YCCK")


def prepare_photo(data: bytes, resize: Resize | None) -> Photo:
    """Checks a photo, and makes it RGB, upright, and of the size to store.

    Raises `BadPhoto` as `check_photo` does.
    """
    from PIL import Image

    width, height, colorspace = _read_header(data)
    notes = []
    if colorspace == "Gray":
        notes.append("grey, stored as RGB")
    elif colorspace in CMYK:
        notes.append(f"{colorspace}, stored as RGB")
    # Most photos have no EXIF at all, and need no second look.
    if _has_exif(data) and _orientation(data) != 1:
        notes.append("rotated as its EXIF says")
    if notes or resize is None:
        check_photo(data)
        if not notes:
            return Photo(data, width, height, None)
        upright = _decode(data)
    else:
        # To decode it whole is to check it.
        upright = Image.fromarray(_decode_strictly(data))
    width, height = upright.size
    if resize is not None:
        upright = _resized(upright, resize.of(width, height))
    return Photo(_encode(upright), width, height, "; ".join(notes) or None)


def _encode(photo: Image.Image) -> bytes:
    import numpy as np
    import simplejpeg

    encoded: bytes = simplejpeg.encode_jpeg(
        np.asarray(photo), quality=QUALITY, colorsubsampling="420", fastdct=False
    )
    return encoded


def _has_exif(data: bytes) -> bool:
    """Whether one of the segments before the first scan of a whole JPEG holds EXIF data."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != START_OF_SCAN:
        if data[at + 1] == 0xFF:  # A marker may have any number of these before it.
            at += 1
            continue
        if data.startswith(b"Exif\0\0", at + 4):
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


START_OF_SCAN = 0xDA


def _orientation(data: bytes) -> int:
    from PIL import ExifTags, Image

    with Image.open(io.BytesIO(data)) as photo:
        value = photo.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in range(1, 9) else 1


def _decode(data: bytes) -> Image.Image:
    """An upright RGB image without metadata."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as photo:
        photo.load()
        upright = ImageOps.exif_transpose(photo).convert("RGB")
    return Image.frombytes("RGB", upright.size, upright.tobytes())


def _resized(photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Antialiased and bilinear, as the loader resizes: stored at its size, it resizes no more."""
    from PIL import Image

    return photo if photo.size == size else photo.resize(size, Image.Resampling.BILINEAR)
