"""What follows from finished shards: the rows of the catalog, and `dataset.json`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from bintally.dataset.catalog import encode_catalog
from bintally.dataset.labels import Classes, are_counts
from bintally.dataset.manifest import CATALOG, SPLITS, Dataset, Shard, Split
from bintally.errors import WorkError
from bintally.storage.place import Place
from sharding.card.card import make_cards
from sharding.planning.growth import WRITTEN
from sharding.planning.plan import Plan
from sharding.shard import ShardRecord, written_schema

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["LABEL_OF_NAMES", "describe_shards", "label_texts", "refuse_useless"]

LABEL_OF_NAMES = "json:label"
"""Where a sample's label is if classes are names: its `.cls` holds a number, for other readers."""


def label_texts(table: pa.Table, classes: Classes) -> pa.Array:
    """What each sample's `.cls` holds: its count, or the number of its class, in ASCII digits."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if are_counts(classes):
        return table["count"].cast(pa.string())
    return pc.index_in(table["label"], pa.array(classes)).cast(pa.string())


def refuse_useless(source: Place, records: Sequence[ShardRecord]) -> NoReturn:
    """Raises `WorkError` for shards that all have remained without samples."""
    reasons = Counter(
        reason for record in records for reason in record.photos["reason"].to_pylist() if reason
    )
    reason, number = reasons.most_common(1)[0]
    raise WorkError(
        f"{source}: none of the {reasons.total():,} photos can be sharded; of {number:,} the "
        f"reason is: {reason}"
    )


def describe_shards(
    plan: Plan, records: Sequence[ShardRecord], seed: int, earlier: Dataset | None
) -> tuple[Dataset, pa.Table, dict[str, bytes]]:
    """The dataset that a plan has become, its catalog, and its files but for `dataset.json`."""
    table = _complete_rows(plan, records)
    if are_counts(plan.classes):
        table = table.drop_columns(["label"])
    dataset = Dataset(
        plan.classes,
        seed,
        plan.source,
        plan.recorded,
        {name: _split(name, plan, records, earlier) for name in SPLITS},
        label="cls" if are_counts(plan.classes) else LABEL_OF_NAMES,
    )
    files = {CATALOG: encode_catalog(table)}
    dataset = replace(dataset, files=_sums(files))
    files |= make_cards(dataset, table)
    return replace(dataset, files=_sums(files)), table, files


def _sums(files: Mapping[str, bytes]) -> dict[str, str]:
    return {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}


def _complete_rows(plan: Plan, records: Sequence[ShardRecord]) -> pa.Table:
    """The catalog: the plan's rows with what became of each photo."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    table = plan.table
    place = np.full(len(table), -1)
    rows = np.concatenate([np.empty(0, np.int64), *(shard.rows for shard in plan.shards)])
    place[rows] = np.arange(len(rows))
    at = pa.array(place, mask=place < 0)
    positions = []
    for record in records:
        inside = pc.is_valid(record.photos["crc32"]).to_numpy(False)
        positions.append(np.where(inside, np.cumsum(inside) - 1, -1).astype(np.int32))
    numbers = np.repeat(np.arange(len(records), dtype=np.int32), [len(p) for p in positions])
    position = np.concatenate([np.empty(0, np.int32), *positions])
    paths = pa.array([record.shard.path for record in records], pa.string())
    inside = position >= 0
    photos = pa.Table.from_batches([record.photos for record in records], written_schema())
    new = {
        "shard": paths.take(pa.array(numbers, mask=~inside)),
        "position": pa.array(position, mask=~inside),
        **{name: photos[name].combine_chunks() for name in ("width", "height", "crc32")},
    }
    for name in WRITTEN:
        column = new[name].take(at)
        if name in table.column_names:  # Of shards that were there before.
            column = pc.coalesce(column, table[name])
            table = table.drop_columns([name])
        table = table.append_column(name, column)
    planned = pc.is_valid(at)
    left_out = pc.and_(planned, pc.is_null(table["crc32"]))
    reason = pc.coalesce(photos["reason"].combine_chunks().take(at), table["reason"])
    columns = {
        "status": pc.if_else(left_out, "quarantined", table["status"]),
        "split": pc.if_else(left_out, None, table["split"]),
        "reason": reason,
    }
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def _split(name: str, plan: Plan, records: Sequence[ShardRecord], earlier: Dataset | None) -> Split:
    shards: list[Shard] = [] if earlier is None else [*earlier.splits[name].shards]
    names = [str(label) for label in plan.classes]
    texts = names if are_counts(plan.classes) else [str(n) for n in range(len(names))]
    for planned, record in zip(plan.shards, records, strict=True):
        if planned.split == name and record.shard.samples:
            found = record.shard.class_counts
            of = {label: found.get(text, 0) for label, text in zip(names, texts, strict=True)}
            shards.append(replace(record.shard, class_counts=of))
    counts = Counter(dict.fromkeys(names, 0))
    for shard in shards:
        counts.update(shard.class_counts)
    return Split(counts.total(), dict(counts), shards)
