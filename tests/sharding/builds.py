"""Builds for the tests of sharding, small ones and one whose disk fails, and what they made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

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


def dalis_own_reader(tars: Sequence[Path]) -> Iterator[tuple[bytes, bytes, bytes]]:
    """The jpg, cls and json of each sample of shards, without end, as DALI itself reads them."""
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)  # type: ignore[untyped-decorator]
    def pipeline() -> Any:
        outputs: Any = fn.readers.webdataset(
            paths=[str(tar) for tar in tars],
            index_paths=[str(tar.with_suffix(".idx")) for tar in tars],
            ext=["jpg", "cls", "json"],
        )
        return tuple(outputs)

    reader = pipeline()
    while True:
        jpg, cls, metadata = (output.at(0).tobytes() for output in reader.run())
        yield jpg, cls, metadata
