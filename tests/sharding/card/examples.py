"""Datasets to be described, that no disk holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from bintally.dataset.catalog import encode_catalog, read_catalog
from bintally.dataset.labels import Classes, are_counts
from bintally.dataset.manifest import CATALOG, SPLITS, Dataset, Shard, Split

OPTIONS = {
    "max_count": 5,
    "min_count": 0,
    "fraction": None,
    "limit": None,
    "ids": None,
    "split": [0.6, 0.2, 0.2],
    "group": "neighbours",
    "shard_samples": 30,
    "resize": "",
}


def dataset_of(
    classes: Classes, splits: Mapping[str, Sequence[Sequence[int]]], **options: Any
) -> Dataset:
    """With the samples of each class in each shard of each split."""
    described = {}
    for name in SPLITS:
        shards = []
        for number, samples in enumerate(splits.get(name, ())):
            stem = f"{name}/{name}-{number:06d}"
            counts = {str(of): n for of, n in zip(classes, samples, strict=True)}
            digest = f"{number:064x}"
            shards.append(Shard(f"{stem}.tar", f"{stem}.idx", sum(samples), 10240, digest, counts))
        totals = {str(of): sum(s.class_counts[str(of)] for s in shards) for of in classes}
        described[name] = Split(sum(totals.values()), totals, shards)
    source = {"images": 12, "metadata": 12, "sha256": "b" * 64}
    files = {CATALOG: "c" * 64}
    return Dataset(classes, 7, source, OPTIONS | options, described, files)


def catalog_of(
    dataset: Dataset,
    others: Sequence[Mapping[str, Any]] = (),
    columns: Mapping[str, pa.Array] | None = None,
) -> pa.Table:
    """A row for each sample of a dataset, each two pixels larger than the last, and for others
    that are in no shard, as it is read from a file. `columns` are the user's own."""
    rows: list[Mapping[str, Any]] = []
    for name, split in dataset.splits.items():
        for shard in split.shards:
            labels = [of for of in dataset.classes for _ in range(shard.class_counts[str(of)])]
            for position, label in enumerate(labels):
                number = len(rows)
                rows.append(
                    {
                        "id": f"{number:05d}",
                        "count" if are_counts(dataset.classes) else "label": label,
                        "split": name,
                        "shard": shard.path,
                        "position": position,
                        "bytes": 1000 + 2 * number,
                        "width": 100 + 2 * number,
                        "height": 50 + 2 * number,
                        "skus": [],
                        "status": "sharded",
                        "crc32": number,
                    }
                )
    rows += others
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    for name, values in (columns or {}).items():
        table = table.append_column(name, values)
    return read_catalog(encode_catalog(table))


COUNTS = dataset_of(range(3), {"train": [[1, 2, 3], [3, 0, 1]], "test": [[0, 1, 0]]})
NAMES = dataset_of(["amber", "blue | <b>", "yes"], {"train": [[2, 1, 1]]}, group="column:bin id")
LEFT_OUT: list[Mapping[str, Any]] = [
    {"id": f"1000{n}", "status": "quarantined", "reason": f"metadata/1000{n}.json: no JSON"}
    for n in range(3)
] + [
    {"id": "20001", "status": "excluded", "count": 9, "reason": "count is above --max-count 5"},
    {"id": "20002", "status": "orphan-image", "reason": "no metadata/20002.json"},
]
