"""Builds for the tests of sharding, small ones and one whose disk fails, and what they made."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from bintally.dataset.catalog import read_catalog
from bintally.errors import WorkError
from bintally.storage.folder import Folder
from bintally.storage.opening import open_place
from bintally.storage.place import Place
from sharding.build import Result, build
from sharding.distribute import Processes
from sharding.planning.options import Options

SMALL = Options(shard_samples=5)


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


def catalog_rows(folder: Path) -> list[SimpleNamespace]:
    """The rows of a dataset's catalog, with the columns by name."""
    table = read_catalog((folder / "catalog.parquet").read_bytes())
    return [SimpleNamespace(**row) for row in table.to_pylist()]
