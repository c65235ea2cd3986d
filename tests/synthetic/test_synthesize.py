"""The rendered bucket is laid out, and as faulty, as the real one."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from bintally.errors import UsageError
from bintally.storage.opening import open_place
from synthetic.synthesize import synthesize
from tests.conftest import SEED, contents


def test_the_bytes_depend_on_the_seed_and_not_on_the_workers(tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    synthesize(open_place(one), images=12, seed=3, workers=1)
    synthesize(open_place(two), images=12, seed=3, workers=2)
    synthesize(open_place(other), images=12, seed=4, workers=1)
    assert contents(one) == contents(two)
    assert contents(one) != contents(other)


def test_photos_have_the_sizes_and_coding_of_the_real_ones(bucket: Path) -> None:
    sizes = []
    for path in (bucket / "bin-images").iterdir():
        data = path.read_bytes()
        if not data.endswith(b"\xff\xd9"):
            continue
        sizes.append(len(data))
        with Image.open(io.BytesIO(data)) as photo:
            assert (photo.format, photo.mode) == ("JPEG", "RGB")
            assert 315 <= photo.width <= 785
            assert 234 <= photo.height <= 1069
    assert 45_000 < sum(sizes) / len(sizes) < 70_000


def test_both_series_of_names_and_all_counts_are_there(bucket: Path) -> None:
    ids = {path.stem for path in (bucket / "bin-images").iterdir()}
    assert {"1", "00001", "10", "00010"} <= ids
    counts = set()
    for path in (bucket / "metadata").iterdir():
        try:
            metadata = json.loads(path.read_text())
        except ValueError:
            continue
        counts.add(metadata["EXPECTED_QUANTITY"])
        assert ("image_fname" in metadata) == (len(path.stem) < 5)
    assert {0, 1, 2, 3, 4, 5, 6} <= counts
    assert SEED == 7, "the bucket of another seed may lack a rare count"


@pytest.mark.parametrize("name", ["bin-images/00001.jpg", "metadata/1.json", "thesis.txt", "a/b"])
def test_a_place_that_is_not_empty_is_left_as_it_is(name: str, tmp_path: Path, s3: str) -> None:
    for place in (open_place(tmp_path / "mine"), open_place(f"{s3}/mine")):
        place.put(name, b"years of work")
        with pytest.raises(UsageError, match=f"mine holds {name}; .*another --output"):
            synthesize(place, images=3)
        assert {e.path: place.get(e.path) for e in place.entries()} == {name: b"years of work"}
