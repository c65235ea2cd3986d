"""What can become a JPEG: PNG and WebP, their size by the header, and their pixels."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from bintally.dataset.jpeg import tiff_orientation

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["convertible_kind", "decode_convertible", "size_by_header"]

PNG = b"\x89PNG\r\n\x1a\n"


def convertible_kind(data: bytes) -> str | None:
    """`PNG` or `WebP`, by the first bytes; None for all else."""
    if data.startswith(PNG):
        return "PNG"
    return "WebP" if data.startswith(b"RIFF") and data[8:12] == b"WEBP" else None


def size_by_header(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, before anything is decoded; zeros where the header is damaged."""
    if data.startswith(PNG):
        return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    match data[12:16]:
        case b"VP8 ":
            width, height = (int.from_bytes(data[at : at + 2], "little") for at in (26, 28))
            return width & LOW_14, height & LOW_14
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return (bits & LOW_14) + 1, (bits >> 14 & LOW_14) + 1
        case b"VP8X":
            width, height = (int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
            return width + 1, height + 1
    return 0, 0


LOW_14 = 2**14 - 1


def decode_convertible(data: bytes) -> tuple[Image.Image, int, bool]:
    """Pixels as RGB, what is transparent over white; how they lie, as `orientation` says; whether
    they are the first frame of several.

    Raises `OSError`, `SyntaxError` or `ValueError` for a damaged file: what Pillow raises. Whoever
    asks has looked at the size.
    """
    # Pillow's `open` would warn of a large photo, to all threads.
    from PIL.PngImagePlugin import PngImageFile
    from PIL.WebPImagePlugin import WebPImageFile

    if data.startswith(PNG):
        PngImageFile(io.BytesIO(data)).verify()  # Checksums, of which decoding checks a few.
        photo: PngImageFile | WebPImageFile = PngImageFile(io.BytesIO(data))
    else:
        photo = WebPImageFile(io.BytesIO(data))
    photo.load()
    exif = photo.info.get("exif", b"")
    return _rgb(photo), tiff_orientation(exif.removeprefix(b"Exif\0\0")), photo.n_frames > 1


def _rgb(photo: Image.Image) -> Image.Image:
    import numpy as np
    from PIL import Image

    if photo.mode.startswith("I"):
        # 16 bits of grey, which Pillow would cut off at 255. Of colours it takes the upper eight.
        grey = np.asarray(photo)
        shades = (grey >> 8).astype(np.uint8)
        shades[grey == photo.info.get("transparency", -1)] = 255
        return Image.fromarray(shades).convert("RGB")
    if not photo.has_transparency_data:
        return photo.convert("RGB")
    white = Image.new("RGBA", photo.size, "white")
    white.alpha_composite(photo.convert("RGBA"))
    return white.convert("RGB")
