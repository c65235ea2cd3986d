"""Samples that cannot be used are told from those that can, and none goes unnamed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from tests.foreign_tars import adopted, faults, loader, photo, reasons, sample, taken, tar_of
from tests.sharding.builds import catalog_rows


def test_what_cannot_be_used_is_named_with_a_reason_and_left_out(tmp_path: Path) -> None:
    good = sample("dir/good", 1, extension="JPEG")
    files = [
        *sample("a", 0).items(),
        ("README", b"hello"),
        *sample("./a", 5).items(),
        ("._b.jpg", b"a Mac's"),
        ("unlabelled.jpg", photo(2)),
        ("photoless.cls", b"1"),
        ("empty.jpg", photo(3)),
        ("empty.cls", b" \n"),
        ("png.jpg", b"\x89PNG\r\n\x1a\n" + bytes(50)),
        ("png.cls", b"1"),
        *sample("with space", 4).items(),
        ("cut.jpg", photo(6)[:-200]),
        ("cut.cls", b"1"),
        ("both.jpg", photo(7)),
        ("both.jpeg", photo(7)),
        ("both.cls", b"1"),
        *good.items(),
    ]
    (tmp_path / "x.tar").write_bytes(tar_of(files))
    adoption = adopted(tmp_path)
    found = reasons(adoption)
    assert {id_: reason.removeprefix("x.tar: ") for id_, reason in found.items()} == {
        "a#2": "its key comes earlier in the tar",
        "README": "its name is not KEY.EXTENSION, as of a sample's file",
        "._b.jpg": "its name is not KEY.EXTENSION, as of a sample's file",
        "unlabelled": "has no .cls with its label (jpg is all it has)",
        "photoless": "has no .jpg or .jpeg (cls is all it has)",
        "empty": "its .cls is empty",
        "png": "photo is a PNG, not a JPEG",
        "with space": "its name holds white space, which an index cannot",
        "cut": found["cut"].removeprefix("x.tar: "),
        "both": "has both a .jpg and a .jpeg",
    }
    assert "photo does not decode" in found["cut"]
    assert adoption.dataset.splits["train"].samples == 2
    assert [*taken(loader(tmp_path, batch_size=2))[0][0]] in (["a", "dir/good"], ["dir/good", "a"])
    assert faults(tmp_path) == []


def test_what_is_used_keeps_its_id_whatever_else_would_have_it(tmp_path: Path) -> None:
    """The catalog then names the samples as a loader does."""
    first = [*sample("a", 1).items(), *sample("b", 2).items(), *sample("a", 3).items()]
    first += [("raw\udcff.jpg", photo(4)), *sample("raw\\xff", 5).items(), *sample("a", 6).items()]
    (tmp_path / "1.tar").write_bytes(tar_of(first))
    (tmp_path / "2.tar").write_bytes(tar_of(sample("a#2", 7)))
    found = reasons(adopted(tmp_path))
    assert {id_: reason.partition(": ")[2] for id_, reason in found.items()} == {
        "a#3": "its key comes earlier in the tar",
        "a#4": "its key comes earlier in the tar",
        "raw\\xff#2": "its name is no UTF-8 text",
    }
    ids = {row.id for row in catalog_rows(tmp_path) if row.status == "sharded"}
    assert ids == {"a", "b", "raw\\xff", "a#2"}
    assert ids == {*taken(loader(tmp_path, batch_size=4))[0][0]}
    assert faults(tmp_path) == []


def encoded(mode: str, **how: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (32, 24)).save(buffer, "JPEG", **how)
    return buffer.getvalue()


def test_a_photo_is_taken_as_it_is_stored_or_not_at_all(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    photos = {
        "grey": encoded("L"),
        "inks": encoded("CMYK"),
        "turned": encoded("RGB", exif=turned.tobytes()),
    }
    files = [
        (f"{key}.{ext}", data)
        for key, p in photos.items()
        for ext, data in (("jpg", p), ("cls", b"1"))
    ]
    (tmp_path / "x.tar").write_bytes(tar_of(files))
    assert reasons(adopted(tmp_path)) == {
        "inks": "x.tar: photo is CMYK, which decoders show differently"
    }
    rows = {row.id: row for row in catalog_rows(tmp_path)}
    assert rows["grey"].reason is None
    assert rows["turned"].reason == "EXIF orientation 6, read as it is stored"
    assert (rows["turned"].width, rows["turned"].height) == (32, 24)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "2", "002"], [2, 10]),
        (["10", "2", "two"], ["10", "2", "two"]),
        (["9999999999", "2", "2"], ["2", "9999999999"]),
    ],
)
def test_classes_are_counts_where_all_labels_are(
    tmp_path: Path, labels: list[str], classes: list[int] | list[str]
) -> None:
    files = [f for n, label in enumerate(labels) for f in sample(f"s{n}", n, label).items()]
    (tmp_path / "x.tar").write_bytes(tar_of(files))
    dataset = adopted(tmp_path).dataset
    assert dataset.classes == classes
    assert [*dataset.splits["train"].class_counts] == [str(name) for name in classes]
    opened = loader(tmp_path, batch_size=3)
    ((ids, numbers),) = taken(opened)
    for id_, number in zip(ids, numbers, strict=True):
        assert str(opened.classes[number]) == labels[int(id_[1:])].lstrip("0")
    assert faults(tmp_path) == []
