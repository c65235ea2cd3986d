"""A dataset's cards: `README.md`, which Hugging Face reads as well, and `croissant.json`. Pure.

They hold what the build knows and measured. Where the dataset lies, who publishes it and under
which licence, it does not know.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bintally.dataset.labels import are_counts
from bintally.dataset.manifest import Dataset
from sharding.card.croissant import croissant
from sharding.card.readme import render_readme

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["CROISSANT", "README", "make_cards"]

README = "README.md"
CROISSANT = "croissant.json"


def make_cards(dataset: Dataset, catalog: pa.Table) -> dict[str, bytes]:
    """The cards of a dataset that `build` made, by their names: the same for the same.

    `dataset.files` holds the sha256 of `catalog.parquet`, and `catalog` is the table that was
    written there, or its columns.
    """
    title, summary = _title(dataset), _summary(dataset)
    metadata = croissant(dataset, catalog.schema, title, summary)
    return {
        README: render_readme(dataset, catalog, title, summary).encode(),
        CROISSANT: (json.dumps(metadata, indent=1, ensure_ascii=False) + "\n").encode(),
    }


def _title(dataset: Dataset) -> str:
    classes = dataset.classes
    if not are_counts(classes):
        return f"Photos in {len(classes):,} classes"
    return f"Photos labelled with a count, {classes[0]} to {classes[-1]}"


def _summary(dataset: Dataset) -> str:
    shards = dataset.shards
    label = "a count" if are_counts(dataset.classes) else "its class"
    megabytes = sum(shard.bytes for shard in shards) / 1e6
    return (
        f"{sum(shard.samples for shard in shards):,} JPEG photos, each labelled with {label}, in "
        f"{len(shards):,} WebDataset shards ({megabytes:,.1f} MB)."
    )
