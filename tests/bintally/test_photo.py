"""Which photos are fit for training."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from bintally.command import UsageError
from bintally.photo import BadPhoto, Photo, Resize, check_photo, prepare_photo


def jpeg(mode: str = "RGB", size: tuple[int, int] = (60, 40)) -> bytes:
    spots = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(spots).resize(size, Image.Resampling.BICUBIC).convert(mode).save(sink, "JPEG")
    return sink.getvalue()


def test_a_good_photo_keeps_its_bytes() -> None:
    data = jpeg()
    assert prepare_photo(data, None) == Photo(data, 60, 40, None)


def decoded(data: bytes) -> Image.Image:
    photo = Image.open(io.BytesIO(data))
    photo.load()
    return photo


@pytest.mark.parametrize(
    ("mode", "note"), [("L", "grey, stored as RGB"), ("CMYK", "CMYK, stored as RGB")]
)
def test_grey_and_cmyk_photos_are_stored_as_rgb(mode: str, note: str) -> None:
    photo = prepare_photo(jpeg(mode), None)
    assert photo.note == note
    assert decoded(photo.data).mode == "RGB"
    wanted = decoded(jpeg(mode)).convert("RGB")
    assert mean_difference(decoded(photo.data), wanted) < 3


def mean_difference(a: Image.Image, b: Image.Image) -> float:
    assert a.size == b.size
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_rotation_in_the_exif_data_is_applied(orientation: int) -> None:
    upright = decoded(jpeg(size=(90, 60)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    upright.save(sink, "JPEG", exif=exif, quality=95)
    photo = prepare_photo(sink.getvalue(), None)
    assert photo.note == "rotated as its EXIF says"
    wanted = ImageOps.exif_transpose(decoded(sink.getvalue()))
    assert (photo.width, photo.height) == wanted.size == ((90, 60), (60, 90))[orientation > 4]
    assert mean_difference(decoded(photo.data), wanted) < 3
    assert b"Exif" not in photo.data
    assert prepare_photo(photo.data, None).note is None


@pytest.mark.parametrize(
    ("resize", "size"),
    [
        ("20", (30, 20)),
        ("40", (60, 40)),
        ("64", (60, 40)),
        ("32x32", (32, 32)),
        ("90x10", (90, 10)),
    ],
)
def test_photos_are_stored_at_the_size_asked_for(resize: str, size: tuple[int, int]) -> None:
    photo = prepare_photo(jpeg(), Resize.parse(resize))
    assert (photo.width, photo.height) == (60, 40)
    assert decoded(photo.data).size == size


def test_a_real_photo_stored_small_is_near_one_resized_when_it_is_loaded(abid: Path) -> None:
    for path in sorted((abid / "bucket/bin-images").iterdir())[:20]:
        data = path.read_bytes()
        stored = decoded(prepare_photo(data, Resize.parse("224x224")).data)
        loaded = decoded(data).resize((224, 224), Image.Resampling.BILINEAR)
        assert mean_difference(stored, loaded) < 2.5


@pytest.mark.parametrize("text", ["0", "-3", "x", "224x", "10x0", "1e3", "big"])
def test_a_size_that_makes_no_sense_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="--resize"):
        Resize.parse(text)


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
