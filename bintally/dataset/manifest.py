"""The dataset on disk: what `sharding` writes and `training` reads.

dataset.json                 written last: its presence means complete
catalog.parquet              one row per object of the source, with what became of it
train/train-000000.tar       <id>.jpg  <id>.cls (the count in ASCII digits)  <id>.json
train/train-000000.idx       DALI's index v1.2
validation/…   test/…
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from os import PathLike
from typing import Any

from bintally.errors import UsageError, WorkError
from bintally.storage.opening import open_place
from bintally.storage.place import Place

__all__ = [
    "CATALOG",
    "DATASET",
    "FORMAT",
    "SPLITS",
    "Dataset",
    "Shard",
    "Split",
    "read_dataset",
]

FORMAT = "bintally-shards/1"
SPLITS = ("train", "validation", "test")
DATASET = "dataset.json"
CATALOG = "catalog.parquet"


@dataclass(frozen=True)
class Shard:
    """One tar and its index."""

    path: str
    """Where the tar is, below the dataset's place."""
    index: str
    """Where its index is."""
    samples: int
    bytes: int
    """Size of the tar."""
    sha256: str
    """Of the tar; the index follows from it."""
    class_counts: Mapping[str, int]
    """Samples by count."""


@dataclass(frozen=True)
class Split:
    """The shards of `train`, `validation` or `test`."""

    samples: int
    class_counts: Mapping[str, int]
    shards: Sequence[Shard]


@dataclass(frozen=True)
class Dataset:
    """What `dataset.json` says."""

    classes: Sequence[int]
    """The counts that a model tells apart, ascending: class i is the count `classes[i]`."""
    seed: int
    source: Mapping[str, Any]
    """What was read: numbers of objects, and a digest of their names, sizes and metadata."""
    options: Mapping[str, Any]
    """The options of `build` that made it."""
    splits: Mapping[str, Split]
    files: Mapping[str, str] = field(default_factory=dict)
    """sha256 of what is no shard; none where an older version wrote the dataset."""

    def to_json(self) -> bytes:
        """The bytes of `dataset.json`: equal datasets, equal bytes."""
        value = {"format": FORMAT, **{f.name: getattr(self, f.name) for f in fields(self)}}
        if not self.files:
            del value["files"]
        value["splits"] = {
            name: {**vars(split), "shards": [vars(shard) for shard in split.shards]}
            for name, split in self.splits.items()
        }
        return (json.dumps(value, indent=1) + "\n").encode()

    @cached_property
    def sha256(self) -> str:
        """The dataset's identity, which a checkpoint keeps: what is no shard does not change it."""
        return hashlib.sha256(replace(self, files={}).to_json()).hexdigest()

    @classmethod
    def from_json(cls, data: bytes) -> Dataset:
        """Reads `dataset.json`; `ValueError` or `KeyError` if it is not one."""
        value = json.loads(data)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        splits = {
            name: Split(
                split["samples"],
                split["class_counts"],
                [Shard(**shard) for shard in split["shards"]],
            )
            for name, split in value["splits"].items()
        }
        numbers = [*value["classes"], *(split.samples for split in splits.values())]
        for split in splits.values():
            numbers += split.class_counts.values()
            for shard in split.shards:
                numbers += [shard.samples, shard.bytes, *shard.class_counts.values()]
        if not all(type(number) is int for number in numbers):
            raise ValueError("a number in it is not a whole number")
        return cls(
            value["classes"],
            value["seed"],
            value["source"],
            value["options"],
            splits,
            value.get("files", {}),
        )


def read_dataset(place: Place | str | PathLike[str]) -> Dataset:
    """Reads the `dataset.json` of a complete dataset: in a folder, or at s3://BUCKET/PREFIX.

    Raises `UsageError` where there is no such place, `WorkError` where the dataset in it is not
    complete or its `dataset.json` is damaged.
    """
    place = place if isinstance(place, Place) else open_place(place)
    place.check()
    try:
        data = place.get(DATASET)
    except FileNotFoundError:
        if next(iter(place.entries()), None) is None:
            raise UsageError(f"{place}: empty; there is no dataset here") from None
        raise WorkError(
            f"{place}: no {DATASET}, so this is no complete dataset; "
            "run the `bintally build` that makes it, again if it was interrupted"
        ) from None
    try:
        return Dataset.from_json(data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkError(f"{place}/{DATASET}: not readable: {error}; build it again") from error
