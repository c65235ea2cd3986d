"""No build touches what is not its own, wherever it is sent."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bintally.errors import UsageError, WorkError
from bintally.storage.opening import open_place
from sharding.planning.options import Options
from tests.conftest import contents, copy
from tests.sharding.builds import make

NAMES = st.sampled_from(
    [
        *("dataset.json", "catalog.parquet", "train", "validation", "test", ".build", "notes.txt"),
        *("train/train-000000.tar", "train/train-000000.idx", "test/test-000001.tar"),
        *("train/cat.jpg", "validation/cats/1.jpg", ".build/plan", ".build/train-000000.json"),
        *("bin-images/00001.jpg", "metadata/00001.json", "Train/train-000000.tar", ".bintally"),
    ]
)
JUNK = st.sampled_from(
    [b"", b"years of work", b"{}", b"v1.2 0\n", b'{"format": "bintally-shards/1"}']
)
TREES = st.dictionaries(NAMES, JUNK, max_size=5)


SOURCES = st.sampled_from(["data/bucket", "data/bucket/.", "link", "data/../link"])
DESTINATIONS = st.sampled_from(
    [
        *("", "data", "data/bucket", "data/bucket/bin-images", "data/bucket/train", "data/bucket2"),
        *("data/buck", "data/Bucket", "link", "link/deeper", "data/../data/bucket/x", "other"),
        *("link/../bucket", "data/link-to-other", "data/link-to-train/shards"),
    ]
)


def test_source_and_destination_may_not_contain_each_other(
    small_bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "data/train"
    shutil.copytree(small_bucket, source)
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "linked/elsewhere").mkdir(parents=True)
    shutil.copytree(small_bucket / "metadata", tmp_path / "linked/metadata")
    (tmp_path / "linked/bin-images").symlink_to(source / "bin-images")
    monkeypatch.chdir(source)
    before = contents(tmp_path)
    overlapping: list[tuple[Path, Path | str]] = [
        (source, source),
        (source, tmp_path / "data"),
        (source, source / "shards/new"),
        (source, "."),
        (source, ".."),
        (source, "../train/deeper"),
        (source, tmp_path / "link"),
        (tmp_path / "link", source / "deeper"),
        (tmp_path / "link", tmp_path / "data"),
        (tmp_path / "linked", source / "bin-images/new"),
    ]
    for one, other in overlapping:
        with pytest.raises(UsageError, match="one contains the other"):
            make(one, other)
    assert contents(tmp_path) == before
    make(source, "../train-shards")


def test_prefixes_of_s3_may_not_contain_each_other(small_bucket: Path, s3: str) -> None:
    copy(open_place(small_bucket), open_place(f"{s3}/a/b"))
    for source, destination in [
        ("a/b", "a/b"),
        ("a/b", "a/b/"),
        ("a/b/", "a/b/train"),
        ("a/b", "a"),
        ("a/b", ""),
        ("a/b", "/"),
    ]:
        with pytest.raises(UsageError, match="one contains the other"):
            make(f"{s3}/{source}", f"{s3}/{destination}")
    for destination in ("a/b2", "a/B"):
        make(f"{s3}/a/b", f"{s3}/{destination}", Options(limit=2))


def clean(tree: dict[str, bytes]) -> dict[str, bytes]:
    """Without files that lie below files."""
    return {
        path: data
        for path, data in tree.items()
        if not any(other.startswith(f"{path}/") for other in tree)
    }


@settings(max_examples=40, deadline=None)
@given(tree=TREES, over=st.sampled_from(["", "dataset", "unfinished"]), restart=st.booleans())
@example(tree={"train/cat.jpg": b"cat"}, over="", restart=True)
@example(tree={"train/train-000000.tar": b"mine"}, over="dataset", restart=True)
def test_no_file_that_we_did_not_write_ever_changes(
    tree: dict[str, bytes],
    over: str,
    restart: bool,
    small_bucket: Path,
    dataset: Path,
    unfinished: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    ours = {"": {}, "dataset": contents(dataset), "unfinished": contents(unfinished)}[over]
    theirs = clean(tree)
    theirs = {p: d for p, d in theirs.items() if not any(o.startswith(f"{p}/") for o in ours)}
    place = open_place(folder)
    for path, data in {**ours, **theirs}.items():
        place.put(path, data)
    before = contents(folder)
    if theirs or (over and not restart):
        with pytest.raises(UsageError):
            make(small_bucket, folder, Options(limit=6), restart=restart)
        assert contents(folder) == before
    else:
        make(small_bucket, folder, Options(limit=6), restart=restart)
    shutil.rmtree(folder)


@settings(max_examples=40, deadline=None)
@given(source=SOURCES, destination=DESTINATIONS, tree=TREES, restart=st.booleans())
def test_nothing_that_was_there_ever_changes_wherever_a_build_is_sent(
    source: str,
    destination: str,
    tree: dict[str, bytes],
    restart: bool,
    small_bucket: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("any")
    shutil.copytree(small_bucket, root / "data/bucket")
    (root / "link").symlink_to(root / "data/bucket")
    (root / "data/link-to-other").symlink_to(root / "other")
    (root / "data/link-to-train").symlink_to(root / "data/bucket/bin-images")
    place = open_place(root / destination)
    for path, data in clean(tree).items():
        with suppress(WorkError):  # A folder lies there.
            place.put(path, data)
    before = contents(root)
    try:
        make(root / source, root / destination, Options(limit=6), restart=restart)
    except (UsageError, WorkError):
        assert contents(root) == before
    else:
        assert contents(root).items() >= before.items()
    shutil.rmtree(root)


@pytest.mark.slow
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    source=st.sampled_from(["data/bucket", "data/bucket/", "/data/bucket"]),
    destination=st.sampled_from(
        [
            *("", "/", "data", "data/", "data/bucket", "data/bucket/", "data/bucket/train"),
            *("data/bucket/bin-images/", "data/bucket{}", "data/buck{}", "data/Bucket{}", "{}"),
        ]
    ),
    tree=TREES,
    restart=st.booleans(),
    number=st.integers(0, 10**9),
)
def test_nothing_that_was_there_ever_changes_wherever_on_s3_a_build_is_sent(
    source: str,
    destination: str,
    tree: dict[str, bytes],
    restart: bool,
    number: int,
    small_bucket: Path,
    s3: str,
) -> None:
    whole = open_place(s3)
    if not next(iter(whole.entries("data/bucket")), None):
        copy(open_place(small_bucket), open_place(f"{s3}/data/bucket"))
    url = f"{s3}/{destination.format(number)}"
    for path, data in tree.items():
        open_place(url).put(path, data)
    before = {*whole.entries()}
    try:
        make(f"{s3}/{source}", url, Options(limit=6), restart=restart)
    except (UsageError, WorkError):
        assert {*whole.entries()} == before
    else:
        assert {*whole.entries()} >= before
