"""A bucket in numbers: the statistics of a dataset's catalog. Pure.

These are the numbers that the ABID challenge published of its own data (totals, distribution of
quantities, repetition of objects), for any bucket.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from bintally.dataset.catalog import CatalogRow
from bintally.dataset.manifest import Dataset
from sharding.report.reasons import without_details

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
    """A bucket in numbers. A *bin* is a photo whose metadata could be read, whatever became of it:
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

    def shown(self, at_least: int, at_most: float) -> int:
        """Products that so many photos show."""
        return sum(n for photos, n in self.repetition.items() if at_least <= photos <= at_most)


def summarize_catalog(rows: Sequence[CatalogRow], dataset: Dataset) -> Statistics:
    """The statistics of a dataset and the rows of its catalog."""
    bins = [row for row in rows if row.count is not None or row.label is not None]
    quantities = [row.count for row in bins if row.count is not None]
    names: Sequence[int | str] = dataset.classes
    repetition = Counter(chain.from_iterable(row.skus or () for row in bins))
    groups = Counter(row.group for row in bins if row.group is not None)
    in_split: defaultdict[str | None, list[CatalogRow]] = defaultdict(list)
    for row in bins:
        in_split[row.split].append(row)
    sizes = {
        "bytes": [row.bytes for row in bins if row.bytes is not None],
        "width": [row.width for row in bins if row.width is not None],
        "height": [row.height for row in bins if row.height is not None],
    }
    pixels = _step(sizes["width"] + sizes["height"])
    steps = {"bytes": _step(sizes["bytes"]), "width": pixels, "height": pixels}
    return Statistics(
        statuses=dict(sorted(Counter(row.status for row in rows).items())),
        reasons={
            status: _reasons([row for row in rows if row.status == status])
            for status in ("sharded", "excluded", "quarantined")
        },
        bins=len(bins),
        empty_bins=quantities.count(0),
        bins_with_few=sum(quantity < FEW for quantity in quantities),
        quantity=_spread(quantities),
        quantities=_histogram(quantities, 1),
        products=len(repetition),
        repetition=dict(sorted(Counter(repetition.values()).items())),
        products_per_bin=repetition.total() / len(bins) if bins else None,
        groups=sum(size > 1 for size in groups.values()),
        photos_in_groups=sum(size for size in groups.values() if size > 1),
        largest_group=max(groups.values(), default=0),
        sizes={name: _spread(values) for name, values in sizes.items()},
        size_histograms={name: _histogram(sizes[name], step) for name, step in steps.items()},
        splits={
            name: SplitStatistics(
                split.samples,
                len(split.shards),
                {of: split.class_counts.get(str(of), 0) for of in names},
                _mean([row.count for row in in_split[name] if row.count is not None]),
                len({sku for row in in_split[name] for sku in row.skus or ()}),
            )
            for name, split in dataset.splits.items()
        },
        dataset=dataset,
    )


def _mean(values: Sequence[int]) -> float | None:
    return sum(values) / len(values) if values else None


def _spread(values: Sequence[int]) -> Spread | None:
    import numpy as np

    if not values:
        return None
    p5, median, p95 = (float(value) for value in np.percentile(values, (5, 50, 95)))
    return Spread(sum(values) / len(values), p5, median, p95, max(values))


def _step(values: Sequence[int]) -> int:
    """A round width for some 30 bars."""
    import numpy as np

    low, high = np.percentile(values or [0], (0, TAIL))
    least = float(max(high - low, high / 2)) / 30
    return next(n for n in (m * int(10**k) for k in range(20) for m in (1, 2, 5)) if n >= least)


def _histogram(values: Sequence[int], step: int) -> Histogram:
    import numpy as np

    if not values:
        return Histogram(step, {}, open_ended=False)
    places = np.asarray(values) // step
    last = int(np.percentile(values, TAIL, method="higher") // step)
    bars = Counter(np.minimum(places, last).tolist())
    return Histogram(step, {at * step: bars[at] for at in sorted(bars)}, bool(places.max() > last))


def _reasons(rows: Sequence[CatalogRow]) -> list[Reason]:
    """The rows' reasons; those of quarantine that differ only in their details are one."""
    ids = defaultdict(list)
    for row in rows:
        text = row.reason
        if text is not None and row.status == "quarantined":
            text = without_details(text, row.id)
        if text is not None:
            ids[text].append(row.id)
    found = [Reason(text, len(named), named[:3]) for text, named in ids.items()]
    return sorted(found, key=lambda reason: (-reason.photos, reason.text))
