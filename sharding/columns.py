"""What columns of Arrow's lack for rows by their places."""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["prepare_arrow", "rows_at", "sorted_by_id", "whole"]


def rows_at(table: pa.Table, places: NDArray[np.int64] | pa.Array | pa.ChunkedArray) -> pa.Table:
    """Some rows, null where a place is null. A copy, so that it goes to other processes alone."""
    return table.take(places).combine_chunks()


def sorted_by_id(table: pa.Table) -> pa.Table:
    """The rows by their column `id` ascending, those of one id in the order that they have."""
    import pyarrow.compute as pc

    return rows_at(table, pc.sort_indices(table["id"]))


def whole(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece, which is a copy only where it is in several."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def prepare_arrow() -> None:
    """Has Arrow take less time and memory in this process; to be called before it is imported.

    Its allocator keeps what columns have left, a sixth of a build's memory, and its first array
    imports pandas wherever there is one, which takes half a second and 50 MB. Whoever else imports
    pandas finds it still.
    """
    os.environ.setdefault("MIMALLOC_PURGE_DELAY", "0")
    import pyarrow as pa

    hidden = _Hidden()
    sys.meta_path.insert(0, hidden)
    try:
        pa.array([])
    finally:
        sys.meta_path.remove(hidden)


class _Hidden(MetaPathFinder):
    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name=name)
