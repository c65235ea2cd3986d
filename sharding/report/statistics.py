"""A bucket in numbers: the statistics of a dataset's catalog. Pure.

These are the numbers that the ABID challenge published of its own data (totals, distribution of
quantities, repetition of objects), for any bucket.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

from bintally.dataset.labels import are_counts
from bintally.dataset.manifest import Dataset, Split
from sharding.report.reasons import without_details

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = [
    "FEW",
    "Histogram",
    "Reason",
    "SplitStatistics",
    "Spread",
    "Statistics",
    "summarize_catalog",
]

FEW = 10
"""ABID's authors say what share of the bins holds fewer items than this."""
TAIL = 99.5
"""Percentile up to which a histogram has bars of its own; the last bar holds the rest."""


@dataclass(frozen=True)
class Spread:
    """Some numbers, described by five."""

    mean: float
    p5: float
    median: float
    p95: float
    largest: float


@dataclass(frozen=True)
class Histogram:
    """Numbers of photos by the lower edge of each bar."""

    step: int
    bars: Mapping[int, int]
    open_ended: bool
    """The last bar also holds all that is larger."""


@dataclass(frozen=True)
class Reason:
    """Why photos were put aside, or converted."""

    text: str
    photos: int
    examples: Sequence[str]


@dataclass(frozen=True)
class SplitStatistics:
    """The samples of a split."""

    samples: int
    shards: int
    class_counts: Mapping[int | str, int]
    mean_quantity: float | None
    products: int


@dataclass(frozen=True)
class Statistics:
    """A bucket in numbers. A *bin* is a photo whose count or class is known, whatever became of it:
    in a shard, excluded, or quarantined because the photo itself is damaged; of tars that others
    wrote, a sample that is used."""

    statuses: Mapping[str, int]
    reasons: Mapping[str, Sequence[Reason]]
    """By status, the most frequent first. Of those `sharded`: what was done to the photos."""
    bins: int
    empty_bins: int
    bins_with_few: int
    """Holding fewer than `FEW` items."""
    quantity: Spread | None
    quantities: Histogram
    """Of step 1."""
    products: int
    """Product categories: distinct SKUs."""
    repetition: Mapping[int, int]
    """Products by the number of photos that show them, ascending."""
    products_per_bin: float | None
    groups: int
    """Neighbour groups of two photos or more."""
    photos_in_groups: int
    largest_group: int
    sizes: Mapping[str, Spread | None]
    """`bytes` of every bin's photo; `width` and `height` of those in shards, which were decoded."""
    size_histograms: Mapping[str, Histogram]
    splits: Mapping[str, SplitStatistics]
    dataset: Dataset

    @property
    def are_bins(self) -> bool:
        """Whether the photos are known to be of bins: what others put into tars need not be, nor
        what has a name for its class."""
        return not self.dataset.is_adopted and are_counts(self.dataset.classes)

    def shown(self, at_least: int, at_most: float) -> int:
        """Products that so many photos show."""
        return sum(n for photos, n in self.repetition.items() if at_least <= photos <= at_most)


def summarize_catalog(catalog: pa.Table, dataset: Dataset) -> Statistics:
    """The statistics of a dataset and of its catalog, as `read_catalog` gives it."""
    import numpy as np
    import pyarrow.compute as pc

    is_bin = pc.is_valid(catalog["count"])
    if "label" in catalog.column_names:
        is_bin = pc.or_(is_bin, pc.is_valid(catalog["label"]))
    bins = catalog.filter(is_bin)
    quantities = _numbers(bins["count"])
    products = pc.list_flatten(bins["skus"])
    photos_by_product = _frequencies(products)
    photos_by_group = _frequencies(bins["group"].drop_null())
    in_groups = photos_by_group[photos_by_group > 1]
    sizes = {name: _numbers(bins[name]) for name in ("bytes", "width", "height")}
    pixels = _step(np.concatenate([sizes["width"], sizes["height"]]))
    steps = {"bytes": _step(sizes["bytes"]), "width": pixels, "height": pixels}
    statuses = pc.value_counts(catalog["status"].cast("string")).to_pylist()
    return Statistics(
        statuses={of["values"]: of["counts"] for of in sorted(statuses, key=itemgetter("values"))},
        reasons={
            status: _reasons(catalog, status) for status in ("sharded", "excluded", "quarantined")
        },
        bins=len(bins),
        empty_bins=int((quantities == 0).sum()),
        bins_with_few=int((quantities < FEW).sum()),
        quantity=_spread(quantities),
        quantities=_histogram(quantities, 1),
        products=len(photos_by_product),
        repetition=_tally(photos_by_product),
        products_per_bin=len(products) / len(bins) if len(bins) else None,
        groups=len(in_groups),
        photos_in_groups=int(in_groups.sum()),
        largest_group=int(photos_by_group.max(initial=0)),
        sizes={name: _spread(values) for name, values in sizes.items()},
        size_histograms={name: _histogram(sizes[name], step) for name, step in steps.items()},
        splits={
            name: _summarize_split(bins.filter(pc.equal(bins["split"], name)), split, dataset)
            for name, split in dataset.splits.items()
        },
        dataset=dataset,
    )


def _summarize_split(bins: pa.Table, split: Split, dataset: Dataset) -> SplitStatistics:
    import pyarrow.compute as pc

    names: Sequence[int | str] = dataset.classes
    return SplitStatistics(
        split.samples,
        len(split.shards),
        {name: split.class_counts.get(str(name), 0) for name in names},
        _mean(_numbers(bins["count"])),
        len(pc.list_flatten(bins["skus"]).unique()),
    )


def _numbers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """The numbers of a column, without nulls."""
    numbers: NDArray[np.int64] = column.drop_null().cast("int64").to_numpy()
    return numbers


def _frequencies(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """How often each value of a column is there."""
    import pyarrow.compute as pc

    frequencies: NDArray[np.int64] = pc.value_counts(column).field("counts").to_numpy()
    return frequencies


def _tally(values: NDArray[np.int64]) -> dict[int, int]:
    """The distinct values, ascending, each with how often it is there."""
    import numpy as np

    distinct, numbers = np.unique(values, return_counts=True)
    return dict(zip(distinct.tolist(), numbers.tolist(), strict=True))


def _mean(values: NDArray[np.int64]) -> float | None:
    return int(values.sum()) / len(values) if len(values) else None


def _spread(values: NDArray[np.int64]) -> Spread | None:
    import numpy as np

    mean = _mean(values)
    if mean is None:
        return None
    p5, median, p95 = (float(value) for value in np.percentile(values, (5, 50, 95)))
    return Spread(mean, p5, median, p95, int(values.max()))


def _step(values: NDArray[np.int64]) -> int:
    """A round width for some 30 bars."""
    import numpy as np

    low, high = np.percentile(values if len(values) else [0], (0, TAIL))
    least = float(max(high - low, high / 2)) / 30
    return next(n for n in (m * int(10**k) for k in range(20) for m in (1, 2, 5)) if n >= least)


def _histogram(values: NDArray[np.int64], step: int) -> Histogram:
    import numpy as np

    if not len(values):
        return Histogram(step, {}, open_ended=False)
    edges = values // step * step
    last = int(np.percentile(values, TAIL, method="higher") // step * step)
    return Histogram(step, _tally(np.minimum(edges, last)), bool(edges.max() > last))


def _reasons(catalog: pa.Table, status: str) -> list[Reason]:
    """The reasons of a status; those of quarantine that differ only in their details are one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = catalog.select(["id", "status", "reason"])
    rows = rows.filter(pc.and_(pc.equal(rows["status"], status), pc.is_valid(rows["reason"])))
    texts = rows["reason"]
    if status == "quarantined":
        found = zip(texts.to_pylist(), rows["id"].to_pylist(), strict=True)
        texts = pa.array((without_details(text, id_) for text, id_ in found), pa.string())
    by_text = pa.table({"text": texts, "id": rows["id"]}).group_by("text", use_threads=False)
    ids = by_text.aggregate([("id", "list")])
    columns = (
        ids["text"],
        pc.list_value_length(ids["id_list"]),
        pc.list_slice(ids["id_list"], 0, 3),
    )
    reasons = [Reason(*row) for row in zip(*(c.to_pylist() for c in columns), strict=True)]
    return sorted(reasons, key=lambda reason: (-reason.photos, reason.text))
