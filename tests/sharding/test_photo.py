"""Which photos are fit for training."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from sharding.photo import BadPhoto, PhotoSize, check_photo


def jpeg(mode: str = "RGB", size: tuple[int, int] = (60, 40)) -> bytes:
    sink = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(sink, "JPEG")
    return sink.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_whole_photo_has_its_size(mode: str) -> None:
    assert check_photo(jpeg(mode)) == PhotoSize(60, 40)


def test_a_photo_cut_anywhere_is_bad() -> None:
    data = jpeg()
    for end in range(len(data)):
        with pytest.raises(BadPhoto):
            check_photo(data[:end])


def png() -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (4, 4)).save(sink, "PNG")
    return sink.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"hello", "not a JPEG"),
        (png(), "not a JPEG"),
        (jpeg("CMYK"), "CMYK"),
        (b"\xff\xd8" + bytes(100), "damaged header"),
    ],
)
def test_a_bad_photo_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadPhoto) as caught:
        check_photo(data)
    assert reason in str(caught.value)


def test_a_huge_photo_is_refused_by_its_header() -> None:
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xdc\xff\xdc"  # 65,500 by 65,500 pixels
    with pytest.raises(BadPhoto, match="65500x65500 pixels, more than"):
        check_photo(bytes(data))


def test_all_real_photos_are_fit(abid: Path) -> None:
    for path in sorted((abid / "bucket/bin-images").iterdir())[:200]:
        check_photo(path.read_bytes())
