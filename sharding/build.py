"""Building a dataset: catalog, plan, shards, and `dataset.json` last.

Interrupted anywhere, the same command goes on where it stopped: every finished shard has a record
in `.build/`, which is valid as long as the plan is the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bintally.command import UsageError, WorkError
from bintally.photo import Resize
from bintally.places import Folder, Place, delete_temporary_files
from bintally.progress import Progress, say
from sharding.catalog import Catalog, read_source
from sharding.dataset import CATALOG, DATASET, SPLITS, Dataset, Shard, Split
from sharding.distribute import Distributor
from sharding.plan import Options, Plan, make_plan
from sharding.shard import RECORDS, ShardJob, ShardRecord, record_path

__all__ = ["Result", "build"]

PLAN_DIGEST = f"{RECORDS}/plan"


@dataclass(frozen=True)
class Result:
    """What a build did."""

    dataset: Dataset
    catalog: Catalog
    plan: Plan
    resumed_shards: int
    """Shards that an earlier, interrupted build had finished."""
    was_complete: bool
    """The dataset was there already; nothing was written."""


def build(
    source: Place,
    destination: Place,
    options: Options,
    *,
    distributor: Distributor,
    connections: int,
) -> Result:
    """Turns the bucket at `source` into a dataset at `destination`.

    `distributor` runs the jobs that make a shard each, with `connections` requests in flight in
    all; neither changes a byte. Raises `UsageError` for a source or destination that does not fit,
    `WorkError` where a place fails in mid-work: the same call then continues.
    """
    options.check()
    _refuse_foreign(destination)
    catalog = read_source(source, distributor, connections)
    plan = make_plan(catalog, options)
    existing = _existing_dataset(destination, catalog, plan, options)
    if existing is not None:
        _tidy(destination)
        return Result(existing, catalog, plan, 0, was_complete=True)

    records = _finished(destination, plan)
    resumed = len(records)
    at_a_time = min(distributor.workers, max(1, len(plan.shards) - resumed))
    jobs = [
        ShardJob(
            shard,
            {id_: catalog.photos[id_] for id_ in shard.ids},
            {id_: catalog.metadata[id_] for id_ in shard.ids},
            source,
            destination,
            max(1, connections // at_a_time),
            Resize.parse(options.resize),
        )
        for shard in plan.shards
        if shard.path not in records
    ]
    # The small ones, of which each split has one, fill in at the end.
    jobs.sort(key=lambda job: -len(job.shard.ids))
    total = sum(len(shard.ids) for shard in plan.shards)
    with Progress("shards", total, "photos") as progress:
        progress.update(total - sum(len(job.shard.ids) for job in jobs))
        for record in distributor.run(jobs):
            records[record.shard.path] = record
            progress.update(len(record.written) + len(record.quarantined))

    ordered = [records[shard.path] for shard in plan.shards]
    _complete_rows(catalog, ordered)
    if not any(record.shard.samples for record in ordered):
        _tidy(destination)
        reasons = Counter(reason for r in ordered for reason in r.quarantined.values())
        reason, number = reasons.most_common(1)[0]
        raise WorkError(
            f"{source}: none of the {total:,} photos can be sharded; of {number:,} the reason is: "
            f"{reason}"
        )
    dataset = Dataset(
        options.classes,
        options.seed,
        catalog.source,
        plan.recorded,
        {name: _split(name, plan, ordered, options.classes) for name in SPLITS},
    )
    destination.put(CATALOG, catalog.to_parquet())
    destination.put(DATASET, dataset.to_json())
    _tidy(destination)
    return Result(dataset, catalog, plan, resumed, was_complete=False)


def _refuse_foreign(destination: Place) -> None:
    """A build may replace what an unfinished build left, and nothing else."""
    known = (DATASET, CATALOG, *(f"{folder}/" for folder in (*SPLITS, RECORDS)))
    for entry in destination.entries():
        if not entry.path.startswith(known):
            raise UsageError(
                f"{destination} holds {entry.path}, which is no part of a dataset; "
                "choose an empty --output place"
            )


def _existing_dataset(
    destination: Place, catalog: Catalog, plan: Plan, options: Options
) -> Dataset | None:
    try:
        dataset = Dataset.from_json(destination.get(DATASET))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkError(
            f"{destination}/{DATASET}: not readable: {error}; remove it to build again"
        ) from error
    same = (dataset.source, dataset.seed, dataset.options) == (
        catalog.source,
        options.seed,
        plan.recorded,
    )
    if not same:
        raise UsageError(
            f"{destination} holds a complete dataset made from another source or with other "
            "options; choose another place, or remove it"
        )
    return dataset


def _finished(destination: Place, plan: Plan) -> dict[str, ShardRecord]:
    """The records of the shards that an interrupted build of the same plan has finished."""
    _delete_temporary_files(destination)
    sizes = {entry.path: entry.size_bytes for entry in destination.entries()}
    same_plan = PLAN_DIGEST in sizes and destination.get(PLAN_DIGEST) == plan.digest.encode()
    if not same_plan:
        # What lies here was made to another plan, so none of it is of use. The records go before
        # the shards: a shard without a record is written again, a record without one would lie.
        if sizes:
            say(f"{destination}: starting over what another source or other options had begun")
        for path in sorted(sizes):
            destination.delete(path)
        destination.put(PLAN_DIGEST, plan.digest.encode())
        return {}
    records = {}
    for shard in plan.shards:
        if record_path(shard) in sizes:
            record = ShardRecord.from_json(destination.get(record_path(shard)))
            there = sizes.get(shard.path) == record.shard.bytes and shard.index in sizes
            if there or not record.shard.samples:
                records[shard.path] = record
    return records


def _complete_rows(catalog: Catalog, records: Sequence[ShardRecord]) -> None:
    """Adds to the catalog what became of each photo."""
    rows = {row.id: row for row in catalog.rows}
    for record in records:
        for position, sample in enumerate(record.written):
            row = rows[sample.id]
            row.shard, row.position = record.shard.path, position
            row.width, row.height = sample.width, sample.height
            row.crc32, row.reason = sample.crc32, sample.note
        for id_, reason in record.quarantined.items():
            rows[id_].put_aside("quarantined", reason)


def _split(name: str, plan: Plan, records: Sequence[ShardRecord], classes: Sequence[int]) -> Split:
    shards: list[Shard] = []
    counts = Counter({str(count): 0 for count in classes})
    for planned, record in zip(plan.shards, records, strict=True):
        if planned.split == name and record.shard.samples:
            in_shard = {str(c): record.shard.class_counts.get(str(c), 0) for c in classes}
            shards.append(replace(record.shard, class_counts=in_shard))
            counts.update(in_shard)
    return Split(counts.total(), dict(counts), shards)


def _tidy(destination: Place) -> None:
    """Removes what only an unfinished build needs."""
    for entry in list(destination.entries(RECORDS)):
        destination.delete(entry.path)
    _delete_temporary_files(destination)
    if isinstance(destination, Folder) and (destination.root / RECORDS).exists():
        (destination.root / RECORDS).rmdir()


def _delete_temporary_files(destination: Place) -> None:
    if isinstance(destination, Folder):
        for name in ("", RECORDS, *SPLITS):
            delete_temporary_files(destination.root / name)
