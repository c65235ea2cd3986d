"""What a build may touch: what builds made, and of that only what it is told to."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from bintally.errors import UsageError, WorkError
from bintally.storage.folder import Folder
from sharding.planning.options import Options
from tests.conftest import contents
from tests.sharding.builds import make


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
    folder: Path, changed: dict[str, Any], told: str, small_bucket: Path
) -> None:
    before = contents(folder)
    with pytest.raises(UsageError, match=f"{told}.*--restart"):
        make(small_bucket, folder, Options(**{"shard_samples": 5, **changed}))
    assert contents(folder) == before


@both
def test_a_changed_bucket_changes_nothing_and_is_named(
    folder: Path, small_bucket: Path, tmp_path: Path
) -> None:
    before, source = contents(folder), tmp_path / "source"
    shutil.copytree(small_bucket, source)
    shutil.copy(source / "bin-images/00001.jpg", source / "bin-images/99999.jpg")
    with pytest.raises(UsageError, match=r"a source of \d+ photos and .*it was.*--restart"):
        make(source, folder)
    (source / "bin-images/99999.jpg").unlink()
    (source / "metadata/00001.json").write_text('{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": 1}')
    with pytest.raises(UsageError, match=r"a source of .*its content changed.*--restart"):
        make(source, folder)
    assert contents(folder) == before


@both
def test_restart_begins_anew(folder: Path, small_bucket: Path, tmp_path: Path) -> None:
    make(small_bucket, folder, Options(shard_samples=7), restart=True)
    make(small_bucket, tmp_path / "anew", Options(shard_samples=7))
    assert contents(folder) == contents(tmp_path / "anew")


def test_an_interrupted_restart_leaves_what_can_be_restarted(
    small_bucket: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
                make(small_bucket, folder, restart=True)
        if not (folder / "dataset.json").exists():
            with pytest.raises(UsageError, match="left of another build; delete it with --restart"):
                make(small_bucket, folder)
        make(small_bucket, folder, restart=True)
        assert contents(folder) == expected


@pytest.mark.parametrize("suffix", ["tar", "idx", "*"])
@pytest.mark.parametrize("folder", ["dataset"], indirect=True)
def test_what_a_complete_dataset_lost_is_made_again(
    suffix: str, folder: Path, dataset: Path, small_bucket: Path
) -> None:
    for path in list(folder.glob(f"train/train-00000[01].{suffix}")):
        path.unlink()
    result = make(small_bucket, folder)
    assert not result.was_complete
    assert result.resumed_shards == len(list(dataset.rglob("*.tar"))) - 2
    assert contents(folder) == contents(dataset)
    assert make(small_bucket, folder).was_complete


@pytest.mark.parametrize("folder", ["dataset"], indirect=True)
def test_a_complete_dataset_without_its_catalog_is_not_complete(
    folder: Path, dataset: Path, small_bucket: Path
) -> None:
    (folder / "catalog.parquet").unlink()
    with pytest.raises(WorkError, match=r"catalog\.parquet: missing.*--restart"):
        make(small_bucket, folder)
    make(small_bucket, folder, restart=True)
    assert contents(folder) == contents(dataset)


@pytest.mark.parametrize("restart", [False, True])
@both
@pytest.mark.parametrize(
    "name", ["train/train-000000.tar", "train/train-000001.idx", "train/train-000900.tar", "notes"]
)
def test_a_file_of_somebody_elses_among_our_own_stays(
    name: str, folder: Path, restart: bool, small_bucket: Path
) -> None:
    (folder / name).write_bytes(b"years of work")
    before = contents(folder)
    with pytest.raises(UsageError, match=f"holds {name}"):
        make(small_bucket, folder, restart=restart)
    assert contents(folder) == before


def test_a_file_is_no_destination(small_bucket: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"years of work")
    with pytest.raises(UsageError, match="file: not a folder"):
        make(small_bucket, tmp_path / "file")
    with pytest.raises(WorkError, match="file/deeper: cannot be written: Not a directory"):
        make(small_bucket, tmp_path / "file/deeper")
    assert contents(tmp_path) == {"file": b"years of work"}
