"""What columns of Arrow's lack for rows by their places."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["give_back", "rows_at", "sorted_by_id", "whole"]


def rows_at(table: pa.Table, places: NDArray[np.int64] | pa.Array | pa.ChunkedArray) -> pa.Table:
    """Some rows, null where a place is null. A copy, so that it goes to other processes alone."""
    return table.take(places).combine_chunks()


def sorted_by_id(table: pa.Table) -> pa.Table:
    """The rows by their column `id` ascending, those of one id in the order that they have."""
    import pyarrow.compute as pc

    # Stable, as `sort_indices` of a table is not said to be.
    return rows_at(table, pc.sort_indices(table["id"]))


def whole(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece, which is a copy only where it is in several."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def give_back() -> None:
    """Gives the memory that columns have left back to the system: Arrow keeps it for others."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
