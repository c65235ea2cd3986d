"""Which photos are fit for training."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from bintally.dataset.jpeg import orientation
from bintally.dataset.photo import (
    BadPhoto,
    Photo,
    Resize,
    check_photo,
    prepare_photo,
    read_header,
    stored,
)
from bintally.errors import UsageError
from tests.mutations import encodings, mutated_photos


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


def flat(
    sampling: Sequence[tuple[int, int]], *, frame: int = 0xC0, size: tuple[int, int] = (64, 48)
) -> bytes:
    """A grey JPEG with a component for each pair of factors, which Pillow cannot write."""
    width, height = size
    across, down = max(h for h, _ in sampling), max(v for _, v in sampling)
    blocks = -(-width // (8 * across)) * -(-height // (8 * down)) * sum(h * v for h, v in sampling)
    # Of each block two bits: no difference of brightness, and its end.
    bits = "00" * blocks + "1" * (-2 * blocks % 8)
    code = bytes([1] + [0] * 15) + b"\0"
    ids = range(1, len(sampling) + 1)
    factors = b"".join(bytes([i, h << 4 | v, 0]) for i, (h, v) in zip(ids, sampling, strict=True))
    parts = [
        segment(0xDB, b"\0" + bytes([1] * 64)),
        segment(frame, struct.pack(">BHHB", 8, height, width, len(sampling)) + factors),
        segment(0xC4, b"\x00" + code),
        segment(0xC4, b"\x10" + code),
        segment(0xDA, bytes([len(sampling), *(b for i in ids for b in (i, 0)), 0, 63, 0])),
        int("0" + bits, 2).to_bytes(len(bits) // 8, "big"),
    ]
    return b"\xff\xd8" + b"".join(parts) + b"\xff\xd9"


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def with_exif(data: bytes, tiff: bytes) -> bytes:
    """The photo with EXIF data before all else."""
    return data[:2] + segment(0xE1, b"Exif\0\0" + tiff) + data[2:]


@pytest.mark.parametrize("luma", [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)])
def test_a_sampling_that_every_decoder_knows_is_kept(luma: tuple[int, int]) -> None:
    data = flat([luma, (1, 1), (1, 1)])
    assert prepare_photo(data, None) == Photo(data, 64, 48, None)


def test_a_photo_of_441_sampling_is_encoded_again() -> None:
    data = flat([(1, 4), (1, 1), (1, 1)])
    photo = prepare_photo(data, None)
    assert (photo.width, photo.height, photo.note) == (64, 48, "4:4:1 sampling, encoded again")
    assert stored(data, read_header(data)) == photo.data
    assert prepare_photo(photo.data, None) == Photo(photo.data, 64, 48, None)
    assert mean_difference(decoded(photo.data), decoded(data)) < 1
    assert decoded(prepare_photo(data, Resize.parse("32")).data).size == (43, 32)


@pytest.mark.parametrize(
    ("sampling", "name"),
    [
        ([(3, 1), (1, 1), (1, 1)], "3x1,1x1,1x1"),
        ([(1, 1), (2, 2), (2, 2)], "1x1,2x2,2x2"),
        ([(2, 1), (1, 1), (2, 1)], "2x1,1x1,2x1"),
        ([(2, 4), (1, 1), (1, 1)], "2x4,1x1,1x1"),
    ],
)
def test_a_sampling_that_libjpeg_turbo_does_not_decode_is_named(
    sampling: Sequence[tuple[int, int]], name: str
) -> None:
    with pytest.raises(BadPhoto, match=f"^photo has the sampling {name}, which"):
        check_photo(flat(sampling))


@pytest.mark.parametrize(
    "tiff",
    [
        b"",
        b"no TIFF at all",
        b"MM\0*" + bytes(2),
        b"MM\0*\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff",
        b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHI4s", 0x0112, 2, 2, b"6\0\0\0"),
        b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHI4s", 0x0112, 3, 1, b"\0\x09\0\0"),
        b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHI4s", 0x011A, 2, 4, b"text"),
    ],
)
def test_damaged_exif_data_turn_nothing_and_stop_nothing(tiff: bytes) -> None:
    data = with_exif(jpeg(), tiff)
    assert prepare_photo(data, None) == Photo(data, 60, 40, None)
    assert prepare_photo(data, Resize.parse("20")).note is None
    assert stored(data, read_header(data)) == data


@given(st.binary(max_size=80), st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]))
def test_any_exif_data_are_read_as_one_of_eight_ways_to_lie(rest: bytes, start: bytes) -> None:
    assert orientation(with_exif(jpeg(), start + rest)) in range(1, 9)


def test_a_mutated_photo_is_good_or_bad_whatever_is_asked_of_it() -> None:
    photos = encodings(jpeg(size=(200, 200)), 48)
    good = 0
    for data in mutated_photos(photos, 500, seed=0):
        try:
            as_it_is = prepare_photo(data, None)
        except BadPhoto:
            for use in (check_photo, lambda data: prepare_photo(data, Resize(short=24))):
                with pytest.raises(BadPhoto, match=r"^photo "):
                    use(data)
            continue
        good += 1
        assert check_photo(as_it_is.data).width == as_it_is.width
        assert stored(data, read_header(data)) == as_it_is.data
        assert prepare_photo(data, Resize(short=24)).note == as_it_is.note
    assert 50 < good < 450


def test_what_surprises_in_a_photo_is_the_photos_fault_and_what_fails_beside_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A decoder of ours may have faults that nobody knows of yet."""
    import simplejpeg

    for error, raised in (
        (TypeError("no such thing\nat all"), BadPhoto),
        (OverflowError(), BadPhoto),
        (MemoryError(), MemoryError),
    ):

        def fails(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        for name in ("decode_jpeg", "decode_jpeg_header"):
            with monkeypatch.context() as patch:
                patch.setattr(simplejpeg, name, fails)
                for use in (check_photo, lambda data: prepare_photo(data, Resize(short=8))):
                    with pytest.raises(raised) as caught:
                        use(jpeg())
        if raised is BadPhoto:
            assert str(caught.value).startswith(f"photo cannot be read: {type(error).__name__}")


@pytest.mark.parametrize("text", ["99999x99999", "4097", "4096x4097", "9" * 5000])
def test_a_size_that_would_fill_the_memory_is_a_usage_error(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"^--resize 4?9*.*: at most 4,096 pixels a side, .{,120}$"
    ):
        Resize.parse(text)


def test_the_largest_size_is_taken() -> None:
    assert Resize.parse("4096x4096") == Resize(4096, 4096)
    assert Resize.parse("4096") == Resize(short=4096)


def test_a_photo_cut_anywhere_is_bad() -> None:
    data = jpeg()
    for end in range(len(data)):
        with pytest.raises(BadPhoto):
            check_photo(data[:end])


def written_as(form: str) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (4, 4)).save(sink, form)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"hello", "something else, not a JPEG"),
        (written_as("PNG"), "photo is a PNG, not a JPEG"),
        (written_as("WEBP"), "photo is a WebP, not a JPEG"),
        (written_as("GIF"), "photo is a GIF, not a JPEG"),
        (gzip.compress(b"photo", mtime=0), "compressed with gzip"),
        (b"\xff\xd8" + bytes(100), "damaged header"),
        (jpeg()[:200], "damaged header"),
        (flat([(1, 1)] * 2), "2 colour components"),
        (flat([(1, 1)] * 3, frame=0xC3), "lossless"),
        (flat([(1, 1)] * 3, frame=0xC5), "hierarchical"),
        (flat([(1, 1)] * 3, size=(64, 0)), "64x0 pixels"),
        (jpeg().replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), "12 bits a sample"),
        (jpeg() + b"\xff\xda" * 100, "more than 100 scans"),
    ],
)
def test_a_bad_photo_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadPhoto) as caught:
        check_photo(data)
    assert reason in str(caught.value)


# The most that libjpeg takes, and the most that a JPEG can say.
@pytest.mark.parametrize("side", [65_500, 65_535])
@pytest.mark.parametrize("turned", [False, True])
def test_a_huge_photo_is_refused_by_its_header(turned: bool, side: int) -> None:
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = side.to_bytes(2) * 2
    entry = struct.pack(">HHI4s", 0x0112, 3, 1, b"\0\6\0\0")
    photo = with_exif(bytes(data), b"MM\0*\0\0\0\x08\0\x01" + entry) if turned else bytes(data)
    for use in (check_photo, lambda data: prepare_photo(data, None)):
        with pytest.raises(BadPhoto, match=f"{side}x{side} pixels, more than"):
            use(photo)


def test_all_real_photos_are_fit(abid: Path) -> None:
    for path in sorted((abid / "bucket/bin-images").iterdir())[:200]:
        check_photo(path.read_bytes())
