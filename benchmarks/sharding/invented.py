"""An invented source of any size, with ABID's classes and runs of neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharding.source.rows import SampleJson, SourceRows, source_schema

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["MOST_PRODUCTS", "NUM_IMAGES", "Bins", "class_totals", "invent_bins", "invent_source"]

NUM_IMAGES = 535_234
"""ABID's photos with their metadata."""
UP_TO_5 = (9_701, 41_147, 76_863, 90_058, 80_550, 62_448)
"""Those of 0 to 5 items."""
MOST_ITEMS = 20
DECAY = 0.85
"""Bins of one more item, from 6 on: the rest, in a tail like ABID's."""
MOST_PRODUCTS = 3
"""A bin's items are as many products, up to that: 2.7 on average, where ABID has 2.6."""
IN_RUNS = 0.73
"""Share of the photos that have a neighbour with the same bin."""
PAIRS, TRIPLES = 0.72, 0.28
"""Of the photos in runs: those in runs of two and of three."""
PIECE = 2**18
"""Rows that are made at a time."""


@dataclass(frozen=True)
class Bins:
    """What the photos 1, 2, 3 … show."""

    counts: NDArray[np.int32]
    """Items."""
    runs: NDArray[np.int64]
    """Photos of one run show one bin. Run r's products are 3r, 3r + 1 and 3r + 2, of which a photo
    shows the first ones."""


def class_totals(num_images: int) -> list[int]:
    """Photos of 0, 1, 2 … items, as ABID has them."""
    totals = [total * num_images // NUM_IMAGES for total in UP_TO_5]
    rest = num_images - sum(totals)
    weights = [DECAY**step for step in range(MOST_ITEMS - len(totals) + 1)]
    tail = [int(rest * weight / sum(weights)) for weight in weights]
    tail[0] += rest - sum(tail)
    return totals + tail


def invent_bins(num_images: int, seed: int = 0) -> Bins:
    """ABID's classes, in runs of one, two and three photos."""
    import numpy as np

    rng = np.random.default_rng(seed)
    totals = class_totals(num_images)
    counts = np.repeat(np.arange(len(totals), dtype=np.int32), totals)
    # Empty bins have no product to share, so that the others' runs make up for them.
    in_runs = IN_RUNS * num_images / (num_images - totals[0])
    weights = (1 - in_runs, in_runs * PAIRS / 2, in_runs * TRIPLES / 3)
    drawn = rng.choice([1, 2, 3], num_images - totals[0], p=np.array(weights) / sum(weights))
    # Runs are cut from the counts in order: their photos' counts are near, the totals exact.
    ends = np.cumsum(np.concatenate([np.ones(totals[0], int), drawn])).clip(max=num_images)
    lengths = np.diff(ends, prepend=0)
    order = rng.permutation(np.flatnonzero(lengths))
    ends, lengths = ends[order], lengths[order]
    runs = np.repeat(np.arange(len(order)), lengths)
    moved = ends - np.cumsum(lengths)
    return Bins(counts[moved[runs] + np.arange(num_images)], runs)


def invent_source(num_images: int, seed: int = 0) -> SourceRows:
    """What a bucket of such photos holds, without photos or JSON."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    bins = invent_bins(num_images, seed)
    ids = pc.utf8_lpad(pa.array(np.arange(1, num_images + 1)).cast(pa.string()), 5, "0")
    # Of the names, not of the numbers: 100000 comes before 10001.
    order = pc.sort_indices(ids).to_numpy()
    pieces = [
        _rows(ids.take(pa.array(places)), bins.counts[places], bins.runs[places])
        for places in np.array_split(order, range(PIECE, num_images, PIECE))
    ]
    source = {"images": num_images, "metadata": num_images, "sha256": "0" * 64}
    return SourceRows(pa.concat_tables(pieces).combine_chunks(), _NoJson(), source)


def _rows(ids: pa.Array, counts: NDArray[np.int32], runs: NDArray[np.int64]) -> pa.Table:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    nums = np.minimum(counts, MOST_PRODUCTS)
    ends = np.cumsum(nums, dtype=np.int32)
    ranks = np.arange(ends[-1]) - np.repeat(ends - nums, nums)
    products = _names(np.repeat(runs * MOST_PRODUCTS, nums) + ranks)
    columns = {
        "id": ids,
        "path": pc.binary_join_element_wise("bin-images/", ids, ".jpg", ""),
        "bytes": pa.repeat(56_000, len(ids)),
        "version": pa.repeat("0" * 32, len(ids)),
        "count": pa.array(counts),
        "skus": pa.ListArray.from_arrays(
            pa.array(np.concatenate([[0], ends]), pa.int32()), products
        ),
        "status": pa.repeat("sharded", len(ids)),
    }
    schema = source_schema()
    return pa.table({f.name: columns.get(f.name, pa.nulls(len(ids), f.type)) for f in schema})


def _names(numbers: NDArray[np.int64]) -> pa.StringArray:
    """`B000000012` of 12."""
    import numpy as np
    import pyarrow as pa

    text = np.full((len(numbers), 10), ord("B"), np.uint8)
    for place in range(9, 0, -1):
        numbers, digits = np.divmod(numbers, 10)
        text[:, place] = digits + ord("0")
    ends = np.arange(0, text.size + 1, 10, dtype=np.int32)
    return pa.StringArray.from_buffers(len(text), pa.py_buffer(ends), pa.py_buffer(text))


class _NoJson:
    """No shard is made of these rows."""

    def take(self, rows: NDArray[np.int64]) -> SampleJson:
        raise NotImplementedError
