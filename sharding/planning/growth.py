"""A dataset that grows: what is in its shards stays there, and decides where the rest goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bintally.dataset.catalog import conform
from bintally.dataset.manifest import SPLITS
from bintally.errors import UsageError
from sharding.columns import sorted_by_id
from sharding.planning.selection import NOT_TAKEN

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["BETWEEN", "WRITTEN", "held_splits", "with_earlier"]

BETWEEN = "between two splits: may show the same bin as photos in both"
"""Why a new photo is in none."""
WRITTEN = ("shard", "position", "width", "height", "crc32")
"""What the catalog says of a photo that is in a shard."""


def held_splits(table: pa.Table) -> NDArray[np.int8]:
    """The place in `SPLITS` of the split in whose shards a row is already, -1 for all others."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if "shard" not in table.column_names:
        return np.full(len(table), -1, np.int8)
    held = pc.if_else(pc.is_valid(table["shard"]), table["split"], None)
    place: NDArray[np.int8] = pc.index_in(held, pa.array(SPLITS)).fill_null(-1).to_numpy()
    return place.astype(np.int8)


def with_earlier(source: pa.Table, catalog: pa.Table) -> pa.Table:
    """The rows of a source, and in their place those that are in the shards of `catalog`, be they
    still in the source or not. What --fraction or --limit left out stays out.

    Raises `UsageError` where a column of the labels is of another type now.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    fields = {field.name: field for field in (*source.schema, *_written_fields())}
    fields |= {field.name: field for field in catalog.schema if field.name not in fields}

    def shaped(table: pa.Table) -> pa.Table:
        try:
            return conform(table, pa.schema([*fields.values()]))
        except ValueError as error:
            raise UsageError(
                f"--append: in the catalog of the dataset, {error}, which it is in the labels now; "
                "write it as it was"
            ) from error

    held = catalog.filter(pc.is_valid(catalog["shard"]))
    # A group that labels do not give is found anew, for a new photo may join two.
    told = source["group"].take(pc.index_in(held["id"], source["id"]))
    if source["group"].null_count < len(source):
        told = pc.coalesce(told, held["group"])
    held = held.set_column(held.schema.get_field_index("group"), "group", told)
    fresh = source.filter(pc.invert(pc.is_in(source["id"], held["id"])))
    left_out = catalog.filter(
        pc.and_(
            pc.equal(catalog["status"].cast(pa.string()), "excluded"),
            pc.starts_with(catalog["reason"], NOT_TAKEN),
        )
    )
    # The same reason as then, for whom the source would still take.
    reason = left_out["reason"].take(pc.index_in(fresh["id"], left_out["id"]))
    stays = pc.and_(pc.is_valid(reason), pc.equal(fresh["status"], "sharded"))
    for name, value in (
        ("status", pc.if_else(stays, "excluded", fresh["status"])),
        ("reason", pc.if_else(stays, reason, fresh["reason"])),
    ):
        fresh = fresh.set_column(fresh.schema.get_field_index(name), name, value)
    return sorted_by_id(pa.concat_tables([shaped(held), shaped(fresh)]))


def _written_fields() -> list[pa.Field]:
    import pyarrow as pa

    types = (pa.string(), pa.int32(), pa.int32(), pa.int32(), pa.uint32())
    return [pa.field(name, type_) for name, type_ in zip(WRITTEN, types, strict=True)]
