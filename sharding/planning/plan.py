"""The plan of a build: which samples go into which shard. A pure function of source and options.

Samples are shuffled before they are dealt to shards, so that each shard is a fair draw of its
split: readers of WebDataset shuffle only locally.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bintally.dataset.labels import Classes, are_counts
from bintally.dataset.manifest import FORMAT, SPLITS
from bintally.errors import UsageError
from sharding.columns import rows_at, whole
from sharding.planning.groups import count_leaks, group_photos
from sharding.planning.growth import BETWEEN, held_splits, with_earlier
from sharding.planning.options import Options
from sharding.planning.selection import exclude, missing_ids, read_ids
from sharding.planning.split import assign_groups, prescribed_splits, ranks, shuffled
from sharding.source.rows import SourceRows

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["Plan", "PlannedShard", "make_plan"]


@dataclass(frozen=True)
class PlannedShard:
    """A shard to be written."""

    split: str
    path: str
    index: str
    rows: NDArray[np.int64]
    """Its samples, in the tar's order: rows of the plan's table."""


@dataclass(frozen=True)
class Plan:
    """What a build is going to write."""

    table: pa.Table
    """The source's rows, every one's fate decided but for what decoding may still find; of their
    columns those that a catalog has."""
    shards: Sequence[PlannedShard]
    classes: Classes
    source: dict[str, Any]
    """The source's identity, as `dataset.json` is to hold it."""
    recorded: dict[str, Any]
    """The options, likewise."""
    digest: str
    """Equal plans of equal sources have equal digests: what one wrote, the other may keep."""
    ids_not_found: Sequence[str]
    """What the list of --ids names and the source does not hold."""
    leaks: tuple[int, int]
    """Evaluation samples with a neighbour in train, and evaluation samples."""
    leaks_at_random: tuple[int, int]
    """The same for a split that pays no heed to neighbours."""


def make_plan(
    source: SourceRows,
    options: Options,
    earlier: pa.Table | None = None,
    known: Classes | None = None,
) -> Plan:
    """Decides every row's fate but for what decoding may still find.

    `earlier` is the catalog of a dataset that grows, and `known` are its classes: what is in its
    shards stays there, and the shards that are planned are the new ones. Raises `UsageError` where
    nothing is left to shard, or where what is new does not go with what is there.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    listed = None if options.ids is None else read_ids(options.ids)
    table = source.table.drop_columns(["version", "path"] if source.is_abid else ["version"])
    table = table if earlier is None else with_earlier(table, earlier)
    places = np.flatnonzero(pc.equal(table["status"], "sharded"))
    held = held_splits(table)[places]
    # Over all bins, those left out included: 5 and 7 items before and after a pick of 6 are
    # the same bin still.
    groups, names = group_photos(rows_at(table.select(GROUPING), places), options)
    good = rows_at(table.select(DECIDING), places)
    if known is not None:
        _refuse_another_kind(good, known)
    reasons = exclude(good, held >= 0, groups, names, listed, options)
    taken = np.flatnonzero(pc.is_null(reasons))
    classes, class_of = _classes(rows_at(good, taken), options, known)
    told = np.where(held < 0, prescribed_splits(good), held)[taken]
    drawn = ranks(names, options.seed, "split")
    splits = _assign(class_of, groups[taken], drawn, held[taken], told, options)
    if not names.equals(ids := whole(good["id"])):
        drawn = ranks(ids, options.seed, "split")
    at_random = assign_groups(class_of, np.arange(len(taken)), drawn[taken], options.split)
    between = np.zeros(len(good), bool)
    between[taken[splits == NONE]] = True
    if between.any():
        # Without what is between them, groups are apart.
        related = rows_at(table.select(GROUPING), places)
        groups, names = group_photos(related, options, between)
    leaks = [count_leaks(groups[taken], assigned) for assigned in (splits, at_random)]
    del good, class_of, drawn, at_random

    split_of = np.full(len(places), NONE, np.int8)
    split_of[taken] = splits
    reasons = pc.if_else(between, BETWEEN, reasons)
    table = _decide(
        table,
        places,
        group=_coded(groups, names),
        split=_coded(split_of, pa.array(SPLITS)),
        status=_coded(
            np.asarray(pc.is_valid(reasons)).astype(np.int8), pa.array(["sharded", "excluded"])
        ),
        reason=reasons.dictionary_encode(),
    )
    if not len(taken):
        raise UsageError(
            f"none of the {len(table):,} objects of the source is a photo with readable "
            f"metadata that the options choose: {_why_none(table)}"
        )
    new = (split_of >= 0) & (held < 0)
    shards = _cut(table, places[new], split_of[new], earlier, options)
    recorded = options.recorded(listed)
    not_found = missing_ids(listed or [], table["id"])
    identity = [FORMAT, source.source, options.seed, recorded]
    digest = _digest(identity, table, shards)
    return Plan(table, shards, classes, source.source, recorded, digest, not_found, *leaks)


GROUPING = ["id", "skus", "group"]
"""The columns that say which photos belong together. They are large, and soon let go."""
DECIDING = ["id", "count", "label", "split"]
"""Those that a plan is made from then."""


def _assign(
    class_of: NDArray[np.int32],
    groups: NDArray[np.int64],
    ranks: NDArray[np.int64],
    held: NDArray[np.int8],
    told: NDArray[np.int8],
    options: Options,
) -> NDArray[np.int8]:
    """The split of every sample; `NONE` for a new one that is between two.

    `told` is the split that a sample is told, for it is `held` there or by its label, else `NONE`.
    """
    import numpy as np

    # Of each group, the splits in which it has samples already.
    splits_of = np.zeros(len(ranks), np.int8)
    np.bitwise_or.at(splits_of, groups[held >= 0], np.left_shift(1, held[held >= 0]))
    only = np.array([-1, 0, 1, TWO, 2, TWO, TWO, TWO], np.int8)[splits_of[groups]]
    splits = np.where(told < 0, only, told)
    between = (held < 0) & (only != -1) & (splits != only)
    splits[between | (splits == TWO)] = TWO
    free = splits == -1
    num_classes = int(class_of.max(initial=0)) + 1
    filled = np.zeros((len(SPLITS), num_classes), np.int64)
    placed = splits >= 0
    np.add.at(filled, (splits[placed], class_of[placed]), 1)
    splits[free] = assign_groups(class_of[free], groups[free], ranks, options.split, filled)
    splits[splits == TWO] = NONE
    return splits


NONE, TWO = -1, -2
"""Stand for samples that belong to no split, and to two."""


def _refuse_another_kind(good: pa.Table, known: Classes) -> None:
    """Raises `UsageError` where labels are counts and those of a dataset are names, or so."""
    num_named = len(good) - good["label"].null_count
    if num_named != (0 if are_counts(known) else len(good)):
        now, then = ("names", "counts") if are_counts(known) else ("counts", "names")
        raise UsageError(
            f"--append: labels are {now}, and those of the dataset are {then}; build a dataset of "
            "its own from what is new"
        )


def _classes(
    taken: pa.Table, options: Options, known: Classes | None
) -> tuple[Classes, NDArray[np.int32]]:
    """What a model is to tell apart, and which of it each sample is. Names that are new come after
    those that are `known`, for a sample's `.cls` holds the number of its name."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if taken["label"].null_count == len(taken):
        counts = taken["count"].to_numpy()
        return [*range(options.min_count, options.max_count + 1)], counts - options.min_count
    first = [str(name) for name in known or ()]
    names = [*first, *sorted({*taken["label"].unique().to_pylist()} - {*first})]
    return names, pc.index_in(taken["label"], pa.array(names)).to_numpy()


def _coded(codes: NDArray[np.integer], values: pa.Array) -> pa.DictionaryArray:
    """Of each code the value at that place, null where there is none."""
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), values)


def _decide(table: pa.Table, places: NDArray[np.int64], **columns: pa.DictionaryArray) -> pa.Table:
    """The table with what was decided of the rows at `places`; those of the others stay."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    place = np.full(len(table), -1)
    place[places] = np.arange(len(places))
    at = pa.array(place, mask=place < 0)
    del place
    for name, column in columns.items():
        decided = column.take(at).cast(pa.string())
        if name in ("status", "reason"):  # Of a group and a split, labels have only told a wish.
            decided = pc.coalesce(decided, table[name])
        table = table.set_column(table.schema.get_field_index(name), name, decided)
    return table.combine_chunks()


def _cut(
    table: pa.Table,
    places: NDArray[np.int64],
    splits: NDArray[np.int8],
    earlier: pa.Table | None,
    options: Options,
) -> list[PlannedShard]:
    """The samples of each split, shuffled, in shards, numbered on from those that are there."""
    import pyarrow as pa

    there = [] if earlier is None else earlier["shard"].unique().drop_null().to_pylist()
    shards = []
    for number, split in enumerate(SPLITS):
        own = places[splits == number]
        own = own[shuffled(table["id"].take(pa.array(own)), options.seed, "shards")]
        last = max((_number(path) for path in there if path.startswith(f"{split}/")), default=-1)
        for first in range(0, len(own), options.shard_samples):
            last += 1
            stem = f"{split}/{split}-{last:06d}"
            rows = own[first : first + options.shard_samples]
            shards.append(PlannedShard(split, f"{stem}.tar", f"{stem}.idx", rows))
    return shards


def _number(path: str) -> int:
    return int(path.rpartition("-")[2].removesuffix(".tar"))


def _why_none(table: pa.Table) -> str:
    """Of each status how many rows have it, and an example."""
    by_status = {}
    for row in table["status"].value_counts().to_pylist():
        place = table["status"].index(row["values"]).as_py()
        example = table.select(["id", "reason"]).slice(place, 1).to_pylist()[0]
        by_status[row["values"]] = (row["counts"], example)
    most_first = sorted(by_status.items(), key=lambda item: (-item[1][0], item[0]))
    return "; ".join(
        f"{number:,} {status} ({example['id']}: {example['reason']})"
        for status, (number, example) in most_first
    )


def _digest(identity: list[Any], table: pa.Table, shards: Sequence[PlannedShard]) -> str:
    import pyarrow as pa

    digest = hashlib.sha256(json.dumps(identity).encode())
    for shard in shards:
        ids = table["id"].take(pa.array(shard.rows)).to_pylist()
        digest.update("\n".join([shard.path, *ids, ""]).encode())
    return digest.hexdigest()
