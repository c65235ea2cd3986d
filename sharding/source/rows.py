"""What a source holds, as columns: the seam between the layouts of sources and all that follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sharding.columns import rows_at

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["JsonColumn", "SampleJson", "SourceRows", "source_schema"]


class SampleJson(Protocol):
    """The JSON of one shard's samples. Picklable: it goes along with the shard's job."""

    def get(self, number: int) -> bytes:
        """The JSON of the shard's sample `number`, from 0.

        Raises `ObjectRefused` where it has to be fetched and cannot be had.
        """


class JsonColumn(Protocol):
    """The JSON of all rows, or where it can be had."""

    def take(self, rows: NDArray[np.int64]) -> SampleJson:
        """That of some rows, in the order given."""


@dataclass(frozen=True)
class SourceRows:
    """One row per object of a source, by id ascending, each id once."""

    table: pa.Table
    """Columns as in `source_schema`, and after them those that labels bring to the catalog."""
    json: JsonColumn
    source: dict[str, Any]
    """The source's identity, for `dataset.json`: numbers, and a digest of all that decides the
    dataset's bytes. No address in it, so that a bucket and its copy in a folder are equal."""
    around_id: tuple[str, str] | None = None
    """In ABID's layout, whose photos are JPEGs all: what comes before and after the id in a photo's
    path. `table` holds no paths then."""

    @property
    def is_abid(self) -> bool:
        return self.around_id is not None

    def photos(self, rows: pa.Array) -> pa.Table:
        """The photos of some rows: `id`, `path` below the source, and as listed `bytes` and
        `version`."""
        import pyarrow.compute as pc

        some = rows_at(self.table.select(["id", "path", "bytes", "version"]), rows)
        if self.around_id is None:
            return some
        before, after = self.around_id
        path = pc.binary_join_element_wise(before, some["id"], after, "")
        return some.set_column(1, "path", path)


def source_schema() -> pa.Schema:
    """The columns of `SourceRows.table`. `count` or `label` is null in all rows."""
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()),  # a flat name: what the sample's files are called
            ("path", pa.string()),  # the photo's, below the source; null where there is no photo
            ("bytes", pa.int64()),  # of the photo, as listed
            ("version", pa.string()),  # of the photo, as listed
            ("count", pa.int32()),
            ("label", pa.string()),  # where classes are names
            ("skus", pa.list_(pa.string())),
            ("group", pa.string()),  # null where labels prescribe none
            ("split", pa.string()),  # null where labels prescribe none
            ("status", pa.string()),  # `sharded` until something speaks against it
            ("reason", pa.string()),
        ]
    )
