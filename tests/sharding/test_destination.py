"""What a build may touch: what builds made, and of that only what it is told to."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bintally.errors import UsageError, WorkError
from bintally.storage.folder import Folder
from bintally.storage.opening import open_place
from bintally.storage.place import Place
from sharding.build import Result, build
from sharding.distribute import Processes
from sharding.planning.plan import Options
from tests.conftest import contents, copy

SMALL = Options(shard_samples=5)


@pytest.fixture(scope="module")
def bucket(bucket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the rendered bucket."""
    folder = tmp_path_factory.mktemp("small")
    for name, suffix in (("bin-images", "jpg"), ("metadata", "json")):
        (folder / name).mkdir()
        for number in range(1, 31):
            file = bucket / f"{name}/{number:05d}.{suffix}"
            if file.exists():
                shutil.copy(file, folder / name)
    return folder


@pytest.fixture(scope="module")
def dataset(bucket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete dataset of it."""
    folder = tmp_path_factory.mktemp("complete")
    make(bucket, folder)
    return folder


@pytest.fixture(scope="module")
def unfinished(bucket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build that stopped in its fourth shard."""
    folder = tmp_path_factory.mktemp("unfinished")
    with pytest.raises(WorkError, match="the disk is gone"):
        make(FailingFolder(bucket), folder)
    assert len(list(folder.rglob("*.tar"))) == 3
    return folder


class FailingFolder(Folder):
    """A source that fails after some photos were read."""

    photos_read = 0

    def get(self, path: str) -> bytes:
        self.photos_read += path.startswith("bin-images/")
        if self.photos_read > 3 * 5 + 2:
            raise WorkError(f"{path}: the disk is gone")
        return super().get(path)


def make(
    source: Place | Path | str,
    destination: Path | str,
    options: Options = SMALL,
    *,
    restart: bool = False,
) -> Result:
    return build(
        source if isinstance(source, Place) else open_place(source),
        open_place(destination),
        options,
        distributor=Processes(1),
        connections=1,
        restart=restart,
    )


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the fixture that the test names."""
    return Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "copy"))


both = pytest.mark.parametrize("folder", ["dataset", "unfinished"], indirect=True)


@both
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"shard_samples": 6}, r"--shard-samples 6 \(it was 5\)"),
        ({"seed": 1}, r"--seed 1 \(it was 0\)"),
        ({"limit": 9}, r"--limit 9 \(it was not given\)"),
        ({"split": (0.8, 0.1, 0.1)}, r"--split 0\.8 0\.1 0\.1 \(it was 0\.6 0\.2 0\.2\)"),
    ],
)
def test_other_options_change_nothing_and_are_named(
    folder: Path, changed: dict[str, Any], told: str, bucket: Path
) -> None:
    before = contents(folder)
    with pytest.raises(UsageError, match=f"{told}.*--restart"):
        make(bucket, folder, Options(**{"shard_samples": 5, **changed}))
    assert contents(folder) == before


@both
def test_a_changed_bucket_changes_nothing_and_is_named(
    folder: Path, bucket: Path, tmp_path: Path
) -> None:
    before, source = contents(folder), tmp_path / "source"
    shutil.copytree(bucket, source)
    shutil.copy(source / "bin-images/00001.jpg", source / "bin-images/99999.jpg")
    with pytest.raises(UsageError, match=r"a source of \d+ photos and .*it was.*--restart"):
        make(source, folder)
    (source / "bin-images/99999.jpg").unlink()
    (source / "metadata/00001.json").write_text('{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": 1}')
    with pytest.raises(UsageError, match=r"a source of .*its content changed.*--restart"):
        make(source, folder)
    assert contents(folder) == before


@both
def test_restart_begins_anew(folder: Path, bucket: Path, tmp_path: Path) -> None:
    make(bucket, folder, Options(shard_samples=7), restart=True)
    make(bucket, tmp_path / "anew", Options(shard_samples=7))
    assert contents(folder) == contents(tmp_path / "anew")


def test_an_interrupted_restart_leaves_what_can_be_restarted(
    bucket: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete, expected = Folder.delete, contents(dataset)
    for survives in range(0, len(expected) + 1, 3):
        folder, deleted = tmp_path / str(survives), 0
        shutil.copytree(dataset, folder)

        def failing(place: Folder, path: str) -> None:
            nonlocal deleted
            deleted += 1
            if deleted > survives:  # noqa: B023
                raise WorkError("killed")
            delete(place, path)

        with monkeypatch.context() as patch:
            patch.setattr(Folder, "delete", failing)
            with pytest.raises(WorkError, match="killed"):
                make(bucket, folder, restart=True)
        if not (folder / "dataset.json").exists():
            with pytest.raises(UsageError, match="left of another build; delete it with --restart"):
                make(bucket, folder)
        make(bucket, folder, restart=True)
        assert contents(folder) == expected


@pytest.mark.parametrize("suffix", ["tar", "idx", "*"])
@pytest.mark.parametrize("folder", ["dataset"], indirect=True)
def test_what_a_complete_dataset_lost_is_made_again(
    suffix: str, folder: Path, dataset: Path, bucket: Path
) -> None:
    for path in list(folder.glob(f"train/train-00000[01].{suffix}")):
        path.unlink()
    result = make(bucket, folder)
    assert not result.was_complete
    assert result.resumed_shards == len(list(dataset.rglob("*.tar"))) - 2
    assert contents(folder) == contents(dataset)
    assert make(bucket, folder).was_complete


@pytest.mark.parametrize("folder", ["dataset"], indirect=True)
def test_a_complete_dataset_without_its_catalog_is_not_complete(
    folder: Path, dataset: Path, bucket: Path
) -> None:
    (folder / "catalog.parquet").unlink()
    with pytest.raises(WorkError, match=r"catalog\.parquet: missing.*--restart"):
        make(bucket, folder)
    make(bucket, folder, restart=True)
    assert contents(folder) == contents(dataset)


@pytest.mark.parametrize("restart", [False, True])
@both
@pytest.mark.parametrize(
    "name", ["train/train-000000.tar", "train/train-000001.idx", "train/train-000900.tar", "notes"]
)
def test_a_file_of_somebody_elses_among_our_own_stays(
    name: str, folder: Path, restart: bool, bucket: Path
) -> None:
    (folder / name).write_bytes(b"years of work")
    before = contents(folder)
    with pytest.raises(UsageError, match=f"holds {name}"):
        make(bucket, folder, restart=restart)
    assert contents(folder) == before


def test_a_file_is_no_destination(bucket: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"years of work")
    with pytest.raises(UsageError, match="file: not a folder"):
        make(bucket, tmp_path / "file")
    with pytest.raises(WorkError, match="file/deeper: cannot be written: Not a directory"):
        make(bucket, tmp_path / "file/deeper")
    assert contents(tmp_path) == {"file": b"years of work"}


def test_source_and_destination_may_not_contain_each_other(
    bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "data/train"
    shutil.copytree(bucket, source)
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "linked/elsewhere").mkdir(parents=True)
    shutil.copytree(bucket / "metadata", tmp_path / "linked/metadata")
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


def test_prefixes_of_s3_may_not_contain_each_other(bucket: Path, s3: str) -> None:
    copy(open_place(bucket), open_place(f"{s3}/a/b"))
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


# Hypothesis: whatever lies there

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
    bucket: Path,
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
            make(bucket, folder, Options(limit=6), restart=restart)
        assert contents(folder) == before
    else:
        make(bucket, folder, Options(limit=6), restart=restart)
    shutil.rmtree(folder)


SOURCES = st.sampled_from(["data/bucket", "data/bucket/.", "link", "data/../link"])
DESTINATIONS = st.sampled_from(
    [
        *("", "data", "data/bucket", "data/bucket/bin-images", "data/bucket/train", "data/bucket2"),
        *("data/buck", "data/Bucket", "link", "link/deeper", "data/../data/bucket/x", "other"),
        *("link/../bucket", "data/link-to-other", "data/link-to-train/shards"),
    ]
)


@settings(max_examples=40, deadline=None)
@given(source=SOURCES, destination=DESTINATIONS, tree=TREES, restart=st.booleans())
def test_nothing_that_was_there_ever_changes_wherever_a_build_is_sent(
    source: str,
    destination: str,
    tree: dict[str, bytes],
    restart: bool,
    bucket: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("any")
    shutil.copytree(bucket, root / "data/bucket")
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
    bucket: Path,
    s3: str,
) -> None:
    whole = open_place(s3)
    if not next(iter(whole.entries("data/bucket")), None):
        copy(open_place(bucket), open_place(f"{s3}/data/bucket"))
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
