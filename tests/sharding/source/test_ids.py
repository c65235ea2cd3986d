"""An id is a flat name, each occurs once, and other photos do not change it."""

from __future__ import annotations

import re
from random import Random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.source.ids import are_photos, other_images, sample_ids
from sharding.tar import LONGEST_ID, TarBuilder

SAFE = re.compile(rf"[!-~]{{1,{LONGEST_ID}}}")

names = st.text("ab_-.01 é'\"\\\n\0", min_size=1, max_size=4) | st.sampled_from(
    ["x" * 90, "x" * 91, "ü" * 90, "a-0123456789abcdef", "\U0001f600"]
)
paths = st.builds(
    lambda folders, name, ending: "/".join([*folders, name + ending]),
    st.lists(names, max_size=2),
    names,
    st.sampled_from([".jpg", ".JPEG", ".png", ".webp"]),
)


def ids_of(photos: list[str]) -> dict[str, str]:
    return dict(zip(photos, sample_ids(pa.array(photos, pa.string())).to_pylist(), strict=True))


@settings(max_examples=50)
@given(st.lists(paths, unique=True, max_size=12))
def test_ids_are_flat_names_each_once(photos: list[str]) -> None:
    ids = ids_of(photos)
    assert len({*ids.values()}) == len(photos)
    for id_ in ids.values():
        assert SAFE.fullmatch(id_)
        assert not {*id_} & {*"./\\'\""}
        TarBuilder().add(id_, [("jpg", b""), ("json", b"")])


@settings(max_examples=50)
@given(st.lists(paths, unique=True, max_size=8), st.lists(paths, max_size=8))
def test_an_id_stays_when_photos_with_other_names_are_added(
    photos: list[str], more: list[str]
) -> None:
    def stem(path: str) -> str:
        return path.rpartition("/")[2].rpartition(".")[0]

    others = [path for path in {*more} if stem(path) not in {*map(stem, photos)}]
    assert ids_of(photos).items() <= ids_of([*others, *photos]).items()


@settings(max_examples=50)
@given(st.lists(paths, unique=True, max_size=8), st.randoms())
def test_an_id_does_not_depend_on_the_order(photos: list[str], draw: Random) -> None:
    assert ids_of(draw.sample(photos, len(photos))) == ids_of(photos)


def test_a_name_that_is_flat_and_has_no_double_is_the_id() -> None:
    assert ids_of(["bin-images/00012.jpg", "a/B_7-x.PNG", "c/~!@#.webp"]) == {
        "bin-images/00012.jpg": "00012",
        "a/B_7-x.PNG": "B_7-x",
        "c/~!@#.webp": "~!@#",
    }


def test_else_an_id_tells_the_path() -> None:
    """These are written in people's datasets, and never change."""
    assert ids_of(["dog/001.jpg", "cat/001.jpg", "x/two words.jpg", f"{'long/' * 30}a.b.png"]) == {
        "dog/001.jpg": "dog_001-4dad809709d470b5",
        "cat/001.jpg": "cat_001-c76645fb8ea8f349",
        "x/two words.jpg": "x_two_words-b9f47324dc05df18",
        f"{'long/' * 30}a.b.png": f"{'long_' * 14}a_b-3523a6df5841cf02",
    }


def test_a_photo_called_as_another_ones_id_has_another() -> None:
    """Such are taken out of shards, and put beside what they were made of."""
    first = ids_of(["dog/001.jpg", "cat/001.jpg"])
    again = ids_of(["dog/001.jpg", "cat/001.jpg", f"out/{first['dog/001.jpg']}.jpg"])
    assert len({*again.values()}) == 3
    assert first.items() <= again.items()


@pytest.mark.parametrize(
    ("path", "photo", "kind"),
    [
        ("a.jpg", True, None),
        ("x/a.JPeG", True, None),
        ("a.b.png", True, None),
        ("a\nb.WEBP", True, None),
        (".jpg", False, None),
        ("x/.png", False, None),
        ("a.jpg/b", False, None),
        ("a.jpg.txt", False, None),
        ("jpg", False, None),
        ("a.gif", False, "GIF"),
        ("x/a.TIF", False, "TIFF"),
        ("a.heic", False, "HEIC"),
        (".gif", False, None),
        ("gif", False, None),
    ],
)
def test_a_photo_is_known_by_its_ending(path: str, photo: bool, kind: str | None) -> None:
    assert are_photos(pa.array([path])).to_pylist() == [photo]
    (reason,) = other_images(pa.array([path])).to_pylist()
    assert reason == (f"named as a {kind}; a photo is a JPEG, PNG or WebP" if kind else None)
