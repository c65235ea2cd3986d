"""PNGs and WebPs become JPEGs where that is asked for, as programs that show them would."""

from __future__ import annotations

import io
import random
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from bintally.dataset.photo import MAX_PIXELS, BadPhoto, Photo, Resize, prepare_photo
from tests.mutations import mutated_photos

SPOTS = np.random.default_rng(0).integers(0, 255, (5, 8, 4), np.uint8)


def picture(mode: str = "RGB", size: tuple[int, int] = (80, 50)) -> Image.Image:
    """Spots, of which as RGBA some are transparent."""
    spots = Image.fromarray(SPOTS).resize(size, Image.Resampling.BICUBIC)
    return spots.convert(mode) if mode == "RGBA" else spots.convert("RGB").convert(mode)


def written(image: Image.Image, form: str = "PNG", **how: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **({"lossless": True} if form == "WEBP" else {}) | how)
    return sink.getvalue()


def pixels(photo: Photo) -> Image.Image:
    image = Image.open(io.BytesIO(photo.data))
    assert image.format == "JPEG"
    assert image.mode == "RGB"
    return image


def difference(a: Image.Image, b: Image.Image) -> float:
    assert a.size == b.size
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


def over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


FORMS = [("PNG", mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")]
FORMS += [("WEBP", mode) for mode in ("RGB", "RGBA")]


@pytest.mark.parametrize(("form", "mode"), FORMS)
def test_a_png_or_webp_is_stored_as_a_jpeg_over_white(form: str, mode: str) -> None:
    image = picture("RGBA").convert("LA") if mode == "LA" else picture(mode)
    photo = prepare_photo(written(image, form), None, convert=True)
    assert photo.note == f"{'PNG' if form == 'PNG' else 'WebP'}, stored as JPEG"
    assert (photo.width, photo.height) == (80, 50)
    wanted = written(over_white(image), "JPEG", quality=95, subsampling="4:2:0")
    assert difference(pixels(photo), Image.open(io.BytesIO(wanted))) < 2
    assert prepare_photo(photo.data, None) == Photo(photo.data, 80, 50, None)
    small = prepare_photo(written(image, form), Resize(short=25), convert=True)
    assert (pixels(small).size, small.width) == ((40, 25), 80)


def test_a_palette_with_a_transparent_colour_lies_over_white() -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.paste(0, (0, 0, 8, 16))
    photo = np.asarray(
        pixels(prepare_photo(written(image, transparency=0), None, convert=True)), int
    )
    assert np.abs(photo[8, 2] - 255).max() < 15
    assert np.abs(photo[8, 13] - (200, 10, 10)).max() < 15


def test_sixteen_bits_of_grey_are_all_of_the_shades() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    image = Image.fromarray(np.tile(ramp, (64, 1)))
    photo = np.asarray(pixels(prepare_photo(written(image), None, convert=True)), int)
    assert np.abs(photo[32, :, 0] - (ramp >> 8)).max() < 6
    clear = Image.fromarray(np.full((16, 16), 1000, np.uint16))
    photo = np.asarray(pixels(prepare_photo(written(clear, transparency=1000), None, convert=True)))
    assert photo.min() > 250


def test_sixteen_bits_of_colour_are_the_upper_eight() -> None:
    """Pillow cannot write them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    row = b"\0" + struct.pack(">3H", 0xC0FF, 0x4000, 0x1234) * 16
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(row * 16)) + chunk(b"IEND", b"")
    photo = np.asarray(pixels(prepare_photo(png, None, convert=True)), int)
    assert np.abs(photo - (0xC0, 0x40, 0x12)).max() < 4


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_rotation_in_the_exif_data_is_applied(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = written(picture(), form, exif=exif)
    photo = prepare_photo(data, None, convert=True)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (photo.width, photo.height) == wanted.size
    assert difference(pixels(photo), wanted) < 4
    assert ("rotated as its EXIF says" in (photo.note or "")) == (orientation != 1)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(form: str) -> None:
    red, blue = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    data = written(red, form, save_all=True, append_images=[blue, red], duration=100)
    photo = prepare_photo(data, None, convert=True)
    assert photo.note == f"{'PNG' if form == 'PNG' else 'WebP'}, first frame stored as JPEG"
    assert difference(pixels(photo), red) < 4


def test_what_a_photo_is_its_content_says_and_a_jpeg_keeps_its_bytes() -> None:
    data = written(picture(), "JPEG")
    assert prepare_photo(data, None, convert=True) == prepare_photo(data, None)
    for other in ("GIF", "BMP", "TIFF"):
        with pytest.raises(BadPhoto, match=f"photo is a {other}"):
            prepare_photo(written(picture(), other), None, convert=True)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_nothing_is_converted_unless_that_is_asked_for(form: str) -> None:
    with pytest.raises(BadPhoto, match="not a JPEG"):
        prepare_photo(written(picture(), form), None)


def huge(form: str) -> bytes:
    """A photo that says it is 10,000 pixels a side."""
    if form == "PNG":
        data = bytearray(written(picture()))
        data[16:24] = struct.pack(">II", 10_000, 10_000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif form == "VP8X":
        data = bytearray(written(picture("RGBA"), "WEBP", lossless=False))
        assert data[12:16] == b"VP8X"
        data[24:30] = (9_999).to_bytes(3, "little") * 2
    elif form == "VP8L":
        data = bytearray(written(picture(), "WEBP"))
        assert data[12:16] == b"VP8L"
        data[21:25] = (9_999 | 9_999 << 14).to_bytes(4, "little")
    else:
        data = bytearray(written(picture(), "WEBP", lossless=False))
        assert data[12:16] == b"VP8 "
        data[26:30] = (10_000).to_bytes(2, "little") * 2
    return bytes(data)


@pytest.mark.parametrize("form", ["PNG", "VP8X", "VP8L", "VP8 "])
def test_a_huge_photo_is_refused_by_its_header(form: str) -> None:
    with pytest.raises(BadPhoto, match=f"^photo has 10000x10000 pixels, more than {MAX_PIXELS:,}"):
        prepare_photo(huge(form), None, convert=True)


def test_a_text_that_unpacks_to_gigabytes_is_the_photos_fault() -> None:
    data = written(picture())
    content = b"Comment\0\0" + zlib.compress(bytes(50_000_000), 9)
    bomb = struct.pack(">I", len(content)) + b"zTXt" + content
    bomb += struct.pack(">I", zlib.crc32(b"zTXt" + content))
    with pytest.raises(BadPhoto):
        prepare_photo(data[:33] + bomb + data[33:], None, convert=True)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_a_photo_cut_anywhere_is_bad(form: str) -> None:
    data = written(picture(size=(24, 16)), form)
    # A PNG's last chunk says that it is the last, and nothing else.
    for end in range(len(data) - (12 if form == "PNG" else 1)):
        with pytest.raises(BadPhoto, match=r"^photo [^\n]*$"):
            prepare_photo(data[:end], None, convert=True)


def test_a_png_with_a_byte_changed_is_bad_or_has_the_same_pixels() -> None:
    data, draw = written(picture(size=(24, 16))), random.Random(0)
    for _ in range(200):
        changed = bytearray(data)
        changed[draw.randrange(8, len(data) - 12)] ^= 1 << draw.randrange(8)
        with pytest.raises(BadPhoto):
            prepare_photo(bytes(changed), None, convert=True)


def test_a_mutated_photo_is_good_or_bad_and_nothing_else_happens() -> None:
    photos = [
        written(picture(size=(48, 32))),
        written(picture("RGBA", (48, 32))),
        written(picture("P", (48, 32))),
        written(picture(size=(48, 32)), "WEBP", lossless=False),
        written(picture("RGBA", (48, 32)), "WEBP"),
    ]
    good, reasons = 0, []
    for data in mutated_photos(photos, 400, seed=0):
        try:
            photo = prepare_photo(data, None, convert=True)
        except BadPhoto as error:
            reasons.append(str(error))
        else:
            good += 1
            assert pixels(photo).size == (photo.width, photo.height)
    assert good
    assert all(re.fullmatch("photo .+", reason) for reason in reasons)
