"""The plan of a build: which samples go into which shard. A pure function of catalog and options.

Samples are shuffled before they are dealt to shards, so that each shard is a fair draw of its
split: readers of WebDataset shuffle only locally.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bintally.dataset.catalog import CatalogRow
from bintally.dataset.manifest import FORMAT, SPLITS
from bintally.dataset.photo import Resize
from bintally.errors import UsageError
from sharding.planning.groups import count_leaks, neighbour_groups
from sharding.planning.selection import read_ids, sample_groups
from sharding.planning.split import assign_splits, shuffled

if TYPE_CHECKING:
    from sharding.source.catalog import Catalog

__all__ = ["Options", "Plan", "PlannedShard", "make_plan"]


@dataclass(frozen=True)
class Options:
    """What decides the bytes of a dataset, beside its source."""

    max_count: int = 5
    """Bins with more items are left out."""
    min_count: int = 0
    """Bins with fewer items are left out. The classes are this count to the largest."""
    fraction: float | None = None
    """Take this share of the photos, in whole neighbour groups and every class alike."""
    limit: int | None = None
    """Take this many photos, likewise."""
    ids: Path | None = None
    """Take the photos of this list: one id a line, or Udacity's file_list.json."""
    split: tuple[float, float, float] = (0.6, 0.2, 0.2)
    """Shares of train, validation and test."""
    group: Literal["neighbours", "none"] = "neighbours"
    """What is never divided between splits: photos that may show the same bin, or nothing."""
    shard_samples: int = 1000
    """Samples in a shard; the last one of a split holds the rest."""
    resize: str = ""
    """Store photos smaller: 256 for the short side, 224x224 for that very size, up to 4096 pixels a
    side. Encoded again at JPEG quality 95; as they are if not given."""
    seed: int = 0

    def check(self) -> None:
        """Raises `UsageError` for a value that makes no sense."""
        if not 0 <= self.min_count <= self.max_count:
            raise UsageError(
                f"--min-count {self.min_count} --max-count {self.max_count}: must be 0 or more, "
                "and the former not above the latter"
            )
        if min(self.split) < 0 or abs(math.fsum(self.split) - 1) > 1e-6:
            shares = " ".join(map(str, self.split))
            raise UsageError(
                f"--split {shares}: the three shares must be 0 or more and add up to 1"
            )
        if self.shard_samples < 1:
            raise UsageError(f"--shard-samples {self.shard_samples}: must be at least 1")
        if sum(value is not None for value in (self.fraction, self.limit, self.ids)) > 1:
            raise UsageError("only one of --fraction, --limit and --ids may be given")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise UsageError(f"--fraction {self.fraction}: must be above 0 and at most 1")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit}: must be at least 1")
        Resize.parse(self.resize)

    def recorded(self, ids: Sequence[str] | None) -> dict[str, Any]:
        """The options as `dataset.json` holds them: the seed has a field of its own there, and
        of a list of ids it is the content that counts."""
        value = {k: v for k, v in vars(self).items() if k != "seed"}
        value["split"] = list(self.split)
        if ids is not None:
            value["ids"] = hashlib.sha256("\n".join(ids).encode()).hexdigest()
        return value

    @property
    def classes(self) -> list[int]:
        """The counts that a model is to tell apart, ascending."""
        return list(range(self.min_count, self.max_count + 1))


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
    recorded: Mapping[str, Any]
    """The options, as `dataset.json` is to hold them."""
    digest: str
    """Equal plans of equal sources have equal digests: what one wrote, the other may keep."""
    ids_not_found: set[str]
    """What the list of --ids names and the source does not hold."""
    leaks: tuple[int, int]
    """Evaluation samples with a neighbour in train, and evaluation samples."""
    leaks_at_random: tuple[int, int]
    """The same for a split that pays no heed to neighbours."""


def make_plan(catalog: Catalog, options: Options) -> Plan:
    """Decides every row's fate but for what decoding may still find; marks the rows so.

    Raises `UsageError` where nothing is left to shard.
    """
    ids = None if options.ids is None else read_ids(options.ids)
    good = [row for row in catalog.rows if row.status == "sharded"]
    # Over all bins, those left out included: 5 and 7 items before and after a pick of 6 are
    # the same bin still.
    neighbours = neighbour_groups({row.id: row.skus or () for row in good})
    for row in good:
        row.group = neighbours[row.id] if options.group == "neighbours" else row.id
    counts = _select(good, options, neighbours, ids)
    if not counts:
        raise UsageError(
            f"none of the {len(catalog.rows):,} objects of the source is a photo with readable "
            f"metadata that the options choose: {_why_none(catalog.rows)}"
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
        own = shuffled((i for i, s in splits.items() if s == split), options.seed, "shards")
        for number, start in enumerate(range(0, len(own), options.shard_samples)):
            stem = f"{split}/{split}-{number:06d}"
            shard_ids = own[start : start + options.shard_samples]
            shards.append(PlannedShard(split, f"{stem}.tar", f"{stem}.idx", shard_ids))
    recorded = options.recorded(ids)
    return Plan(
        shards,
        recorded,
        _digest([FORMAT, catalog.source, options.seed, recorded], shards),
        set(ids or ()) - {row.id for row in catalog.rows},
        count_leaks(neighbours, splits.items()),
        count_leaks(neighbours, at_random.items()),
    )


def _select(
    good: Sequence[CatalogRow],
    options: Options,
    neighbours: Mapping[str, str],
    ids: Sequence[str] | None,
) -> dict[str, int]:
    """The counts of the rows that the options choose; the others are marked as excluded."""
    listed = None if ids is None else set(ids)
    counts: dict[str, int] = {}
    for row in good:
        assert row.count is not None, "a row is good only if its metadata tells its count"
        if row.count > options.max_count:
            row.put_aside("excluded", f"count is above --max-count {options.max_count}")
        elif row.count < options.min_count:
            row.put_aside("excluded", f"count is below --min-count {options.min_count}")
        elif listed is not None and row.id not in listed:
            row.put_aside("excluded", "not in the list of --ids")
        else:
            counts[row.id] = row.count
    wanted, reason = len(counts), ""
    if options.fraction is not None:
        wanted = round(options.fraction * len(counts))
        reason = f"not in the --fraction {options.fraction}"
    elif options.limit is not None:
        wanted, reason = options.limit, f"not in the --limit {options.limit}"
    chosen = sample_groups(counts, neighbours, wanted, options.seed)
    for row in good:
        if row.id in counts and row.id not in chosen:
            row.put_aside("excluded", reason)
    return {id_: count for id_, count in counts.items() if id_ in chosen}


def _why_none(rows: Sequence[CatalogRow]) -> str:
    """Of each status how many rows have it, and an example."""
    by_status: dict[str, list[CatalogRow]] = {}
    for row in rows:
        by_status.setdefault(row.status, []).append(row)
    most_first = sorted(by_status.values(), key=lambda own: (-len(own), own[0].status))
    return "; ".join(
        f"{len(own):,} {own[0].status} ({own[0].id}: {own[0].reason})" for own in most_first
    )


def _digest(what: list[Any], shards: Sequence[PlannedShard]) -> str:
    value = [*what, [vars(shard) for shard in shards]]
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
