"""The dataset on disk: what `sharding` writes or adopts, and `training` reads.

dataset.json                 written last: its presence means complete
catalog.parquet              one row per object of the source, with what became of it
train/train-000000.tar       <id>.jpg  <id>.cls (the count in ASCII digits)  <id>.json
train/train-000000.idx       DALI's index v1.2
validation/…   test/…

Of tars that others wrote, it says where they are and which of a sample's files holds its label.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from os import PathLike
from typing import Any

from bintally.dataset.labels import Classes
from bintally.errors import UsageError, WorkError
from bintally.storage.folder import Folder
from bintally.storage.opening import open_place
from bintally.storage.place import Place

__all__ = [
    "ADOPT",
    "CATALOG",
    "DATASET",
    "FORMAT",
    "SPLITS",
    "SPLIT_NAMES",
    "Dataset",
    "Shard",
    "Split",
    "open_tars",
    "read_dataset",
]

ADOPT = "adopt"
"""The command that makes a dataset of tars that others wrote."""
FORMAT = "bintally-shards/1"
SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {name: name for name in SPLITS} | {"val": "validation"}
"""What others call a split, and what it is called in a dataset."""
DATASET = "dataset.json"
CATALOG = "catalog.parquet"


@dataclass(frozen=True)
class Shard:
    """One tar and its index."""

    path: str
    """Where the tar is, below the dataset's place, or that of its tars."""
    index: str
    """Where its index is, below the dataset's place."""
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

    classes: Classes
    """What a model tells apart: class i is the count `classes[i]`, ascending. In tars of others
    they may be names, in order."""
    seed: int
    source: Mapping[str, Any]
    """What was read: numbers of objects, and a digest of their names, sizes and metadata."""
    options: Mapping[str, Any]
    """The options of `build` that made it; of what was adopted, the command's name."""
    splits: Mapping[str, Split]
    files: Mapping[str, str] = field(default_factory=dict)
    """sha256 of what is no shard; none where an older version wrote the dataset."""
    label: str = "cls"
    """Which file of a sample holds its label, and how: see `read_label`."""
    ids: str = "key"
    """What a sample's id is: its `key` in the tar, or `path/key`, with the tar's path, without
    `.tar`, in front, where tars of others have keys in common. See `sample_id`."""
    tars: str | None = None
    """Where the tars are, if not beside `dataset.json`: `s3://…`, or a folder relative to its
    own."""

    def to_json(self) -> bytes:
        """The bytes of `dataset.json`: equal datasets, equal bytes."""
        value = {"format": FORMAT, **{f.name: getattr(self, f.name) for f in fields(self)}}
        for name, default in LATER.items():
            if value[name] == default:
                del value[name]
        value["splits"] = {
            name: {**vars(split), "shards": f"\0{name}"} for name, split in self.splits.items()
        }
        text = json.dumps(value, indent=1) + "\n"
        for name, split in self.splits.items():
            text = text.replace(json.dumps(f"\0{name}"), _shards_json(split.shards))
        return text.encode()

    @cached_property
    def sha256(self) -> str:
        """The dataset's identity, which a checkpoint keeps: what is no shard does not change it,
        nor where the shards are."""
        return hashlib.sha256(replace(self, files={}, tars=None).to_json()).hexdigest()

    @property
    def shards(self) -> list[Shard]:
        """Those of all splits."""
        return [shard for split in self.splits.values() for shard in split.shards]

    @property
    def is_adopted(self) -> bool:
        """Whether others wrote its tars."""
        return self.options.get("command") == ADOPT

    def sample_id(self, shard: Shard, key: str) -> str:
        """The id, unique in the dataset, of the sample that has a key in a shard."""
        return key if self.ids == "key" else f"{shard.path.removesuffix('.tar')}/{key}"

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
        classes = value["classes"]
        if not all(type(name) is str for name in classes) and not all(
            type(count) is int for count in classes
        ):
            raise ValueError("its classes are neither counts nor names")
        numbers = [split.samples for split in splits.values()]
        for split in splits.values():
            numbers += split.class_counts.values()
            for shard in split.shards:
                numbers += [shard.samples, shard.bytes, *shard.class_counts.values()]
        if not all(type(number) is int for number in numbers):
            raise ValueError("a number in it is not a whole number")
        return cls(
            classes,
            value["seed"],
            value["source"],
            value["options"],
            splits,
            **{name: value.get(name, default) for name, default in LATER.items()},
        )


def _shards_json(shards: Sequence[Shard]) -> str:
    """What `json.dumps` with an indent of 1 makes of shards, whose list is three levels deep.

    It would take seconds for a hundred thousand, for only without an indent is it compiled.
    """
    quoted = json.encoder.encode_basestring_ascii
    texts = []
    for shard in shards:
        counts = [f"\n      {quoted(label)}: {n}" for label, n in shard.class_counts.items()]
        texts.append(
            f'\n    {{\n     "path": {quoted(shard.path)},\n     "index": {quoted(shard.index)},'
            f'\n     "samples": {shard.samples},\n     "bytes": {shard.bytes},'
            f'\n     "sha256": {quoted(shard.sha256)},\n     "class_counts": '
            + ("{" + ",".join(counts) + "\n     }" if counts else "{}")
            + "\n    }"
        )
    return "[" + ",".join(texts) + "\n   ]" if texts else "[]"


LATER: dict[str, Any] = {"files": {}, "label": "cls", "ids": "key", "tars": None}
"""What is not written where it is this, as in the datasets of older versions."""


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
            "run the `bintally build` that makes it, again if it was interrupted, or for tars that "
            "others wrote `bintally adopt`"
        ) from None
    try:
        return Dataset.from_json(data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkError(f"{place}/{DATASET}: not readable: {error}; build it again") from error


def open_tars(place: Place, dataset: Dataset) -> Place:
    """The place of a dataset's tars, which is `place`, its own, if it does not name another.

    Raises `UsageError` where that is not there, `WorkError` where a dataset on S3 names a folder.
    """
    if dataset.tars is None:
        return place
    if dataset.tars.startswith("s3://"):
        return open_place(dataset.tars)
    if not isinstance(place, Folder):
        raise WorkError(f"{place}/{DATASET}: names the folder {dataset.tars} for its tars")
    tars = Folder(place.root / dataset.tars)
    if not tars.root.is_dir():
        raise UsageError(
            f"{place}: its tars are to be in {tars}, where there is no folder; where they are now, "
            f"`bintally adopt TARS --output {place}` finds them again"
        )
    return tars
