"""Is a photo fit for training? Every one is decoded before it is written into a shard.

The GPU decoder cannot skip a bad photo: one that does not decode ends the whole run. So what is
doubtful is found here, with libjpeg-turbo told to take no warning lightly.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BadPhoto", "PhotoSize", "check_photo"]

MAX_PIXELS = 50_000_000
"""A larger photo is refused by its header, before its pixels would fill the memory."""


class BadPhoto(ValueError):
    """Why a photo is not put into a shard."""


@dataclass(frozen=True)
class PhotoSize:
    """Pixels."""

    width: int
    height: int


def check_photo(data: bytes) -> PhotoSize:
    """Decodes a JPEG to its last coefficient; raises `BadPhoto` with the catalog's reason."""
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
    if colorspace in ("CMYK", "YCCK"):
        raise BadPhoto(f"photo is {colorspace}, not RGB or grey")
    try:
        # All of the entropy-coded data is read at any scale; one pixel for 64 is the cheapest.
        simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, strict=True)
    except ValueError as error:
        raise BadPhoto(f"photo does not decode: {error}") from error
    return PhotoSize(width, height)
