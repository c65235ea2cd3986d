"""Small catalogs for the tests of the dataset report."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from bintally.dataset.catalog import encode_catalog, read_catalog
from bintally.dataset.manifest import SPLITS, Dataset, Shard, Split
from sharding.report.statistics import Statistics, summarize_catalog

Row = dict[str, Any]


def dataset_of(**counts: list[int]) -> Dataset:
    """Of the classes 0 to 2; `counts` gives the number of each by split."""
    splits = {}
    for name in SPLITS:
        numbers = counts.get(name, [0, 0, 0])
        by_class = {str(count): number for count, number in enumerate(numbers)}
        shard = Shard(f"{name}.tar", f"{name}.idx", sum(numbers), 10240, "a" * 64, by_class)
        splits[name] = Split(sum(numbers), by_class, [shard] if sum(numbers) else [])
    options = {"max_count": 2, "group": "neighbours"}
    return Dataset([0, 1, 2], 0, {"images": 9, "sha256": "b" * 64}, options, splits)


def row(id_: str, count: int | None, skus: str | None, **values: object) -> Row:
    nothing = dict.fromkeys(("group", "split", "bytes", "width", "height", "reason"))
    products = None if skus is None else [*skus]
    return {"id": id_, "count": count, "skus": products, "status": "sharded", **nothing, **values}


def summary(rows: list[Row], dataset: Dataset) -> Statistics:
    """The statistics of a catalog of these rows, as it is read."""
    return summarize_catalog(read_catalog(encode_catalog(pa.Table.from_pylist(rows))), dataset)


def small_catalog() -> tuple[list[Row], Dataset]:
    """Seven bins, six of them with products A to D, beside two objects that are no bins."""
    large = {"split": "train", "bytes": 3000, "width": 500, "height": 300}
    small = {"split": "test", "bytes": 1000, "width": 300, "height": 200}
    rows = [
        row("00001", 2, "AB", group="00001", **large),
        row("00002", 1, "A", group="00001", **large, reason="grey, stored as RGB"),
        row("00003", 0, "", group="00001", **small),
        row("00005", 2, "A", group="00005", **small),
        row("00007", 9, "BC", group="00007", bytes=5000),
        row("00008", 28, "CD", group="00008", bytes=4000),
        row("00009", 0, "", group="00009", bytes=0),
        row("00010", None, None, bytes=700),
        row("00011", None, None, bytes=800),
    ]
    above = {"status": "excluded", "reason": "count is above --max-count 2"}
    rows[4] |= above
    rows[5] |= above
    rows[6] |= {"status": "quarantined", "reason": "photo has zero bytes"}
    rows[7] |= {"status": "quarantined", "reason": "metadata is not JSON"}
    rows[8] |= {"status": "orphan-image", "reason": "no metadata/00011.json"}
    return rows, dataset_of(train=[0, 1, 1], test=[1, 0, 1])
