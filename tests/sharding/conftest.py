"""What the tests of sharding share: a bucket that is built in no time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bintally.errors import WorkError
from tests.sharding.builds import FailingFolder, make


@pytest.fixture(scope="session")
def small_bucket(bucket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the rendered bucket."""
    folder = tmp_path_factory.mktemp("small")
    for name, suffix in (("bin-images", "jpg"), ("metadata", "json")):
        (folder / name).mkdir()
        for number in range(1, 31):
            file = bucket / f"{name}/{number:05d}.{suffix}"
            if file.exists():
                shutil.copy(file, folder / name)
    return folder


@pytest.fixture(scope="session")
def dataset(small_bucket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete dataset of it."""
    folder = tmp_path_factory.mktemp("complete")
    make(small_bucket, folder)
    return folder


@pytest.fixture(scope="session")
def unfinished(small_bucket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build that stopped in its fourth shard."""
    folder = tmp_path_factory.mktemp("unfinished")
    with pytest.raises(WorkError, match="the disk is gone"):
        make(FailingFolder(small_bucket), folder)
    assert len(list(folder.rglob("*.tar"))) == 3
    return folder


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    """A copy of the larger dataset, to be damaged."""
    shutil.copytree(shards, tmp_path / "dataset")
    return tmp_path / "dataset"
