"""The plan of a build: which samples go into which shard. A pure function of catalog and options.

Samples are shuffled before they are dealt to shards, so that each shard is a fair draw of its
split: readers of WebDataset shuffle only locally.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bintally.command import UsageError
from sharding.catalog import Catalog
from sharding.dataset import FORMAT, SPLITS
from sharding.groups import count_leaks, neighbour_groups
from sharding.split import assign_splits, shuffled

__all__ = ["Options", "Plan", "PlannedShard", "make_plan"]


@dataclass(frozen=True)
class Options:
    """What decides the bytes of a dataset, beside its source."""

    max_count: int = 5
    """Bins with more items are left out. The classes are 0 to this count."""
    split: tuple[float, float, float] = (0.6, 0.2, 0.2)
    """Shares of train, validation and test."""
    group: Literal["neighbours", "none"] = "neighbours"
    """What is never divided between splits: photos that may show the same bin, or nothing."""
    shard_samples: int = 1000
    """Samples in a shard; the last one of a split holds the rest."""
    seed: int = 0

    def check(self) -> None:
        """Raises `UsageError` for a value that makes no sense."""
        if self.max_count < 0:
            raise UsageError(f"--max-count {self.max_count}: must not be below 0")
        if min(self.split) < 0 or abs(sum(self.split) - 1) > 1e-6:
            shares = " ".join(map(str, self.split))
            raise UsageError(
                f"--split {shares}: the three shares must be 0 or more and add up to 1"
            )
        if self.shard_samples < 1:
            raise UsageError(f"--shard-samples {self.shard_samples}: must be at least 1")

    def recorded(self) -> dict[str, Any]:
        """The options as `dataset.json` holds them; the seed has a field of its own there."""
        return {
            "max_count": self.max_count,
            "split": list(self.split),
            "group": self.group,
            "shard_samples": self.shard_samples,
        }

    @property
    def classes(self) -> list[int]:
        """The counts that a model is to tell apart, ascending."""
        return list(range(self.max_count + 1))


@dataclass(frozen=True)
class PlannedShard:
    """A shard to be written."""

    split: str
    path: str
    index: str
    ids: Sequence[str]


@dataclass(frozen=True)
class Plan:
    """What a build is going to write."""

    shards: Sequence[PlannedShard]
    digest: str
    """Equal plans of equal sources have equal digests: what one wrote, the other may keep."""
    leaks: tuple[int, int]
    """Evaluation samples with a neighbour in train, and evaluation samples."""
    leaks_at_random: tuple[int, int]
    """The same for a split that pays no heed to neighbours."""


def make_plan(catalog: Catalog, options: Options) -> Plan:
    """Decides every row's fate but for what decoding may still find; marks the rows so.

    Raises `UsageError` where nothing is left to shard.
    """
    good = [row for row in catalog.rows if row.status == "sharded"]
    # Over all bins, those left out included: 5 and 7 items before and after a pick of 6 are
    # the same bin still.
    neighbours = neighbour_groups({row.id: row.skus or () for row in good})
    for row in good:
        row.group = neighbours[row.id] if options.group == "neighbours" else row.id
        if row.count is not None and row.count > options.max_count:
            row.put_aside("excluded", f"count is above --max-count {options.max_count}")

    counts = {
        row.id: row.count for row in good if row.status == "sharded" and row.count is not None
    }
    if not counts:
        raise UsageError(
            f"none of the {len(catalog.rows):,} objects of the source is a photo of 0 to "
            f"{options.max_count} items with readable metadata; is this a bucket in ABID's layout?"
        )
    alone = {id_: id_ for id_ in counts}
    at_random = assign_splits(counts, alone, options.split, options.seed)
    splits = at_random
    if options.group == "neighbours":
        splits = assign_splits(counts, neighbours, options.split, options.seed)
    for row in good:
        row.split = splits.get(row.id)

    shards = []
    for split in SPLITS:
        ids = shuffled((i for i, s in splits.items() if s == split), options.seed, "shards")
        for number, start in enumerate(range(0, len(ids), options.shard_samples)):
            stem = f"{split}/{split}-{number:06d}"
            shard_ids = ids[start : start + options.shard_samples]
            shards.append(PlannedShard(split, f"{stem}.tar", f"{stem}.idx", shard_ids))
    return Plan(
        shards,
        _digest(catalog.source, options, shards),
        count_leaks(neighbours, splits.items()),
        count_leaks(neighbours, at_random.items()),
    )


def _digest(source: dict[str, Any], options: Options, shards: Sequence[PlannedShard]) -> str:
    value = [FORMAT, source, options.seed, options.recorded(), [asdict(s) for s in shards]]
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
