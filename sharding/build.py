"""Building a dataset: catalog, plan, shards, and `dataset.json` last.

Interrupted anywhere, the same command goes on where it stopped: every shard has a record in
`.build/`, and is finished if it is there as its record says. One build at a time works on a
destination, and no build throws away what another one made, unless it is told to.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from bintally.dataset.catalog import format_catalog
from bintally.dataset.manifest import CATALOG, DATASET, SPLITS, Dataset, Shard, Split
from bintally.dataset.photo import Resize
from bintally.errors import UsageError, WorkError
from bintally.storage.lease import Lease
from bintally.storage.opening import take_lease
from bintally.storage.place import Place
from bintally.terminal.progress import Progress, say
from sharding.destination import (
    PLAN,
    Found,
    Identity,
    discard,
    look,
    refuse_foreign_names,
    refuse_overlap,
    tidy,
)
from sharding.distribute import Distributor
from sharding.planning.plan import Options, Plan, PlannedShard, make_plan
from sharding.shard import ShardJob, ShardRecord
from sharding.source.catalog import Catalog, read_source

__all__ = ["Result", "build"]


@dataclass(frozen=True)
class Result:
    """What a build did."""

    dataset: Dataset
    catalog: Catalog
    plan: Plan
    resumed_shards: int
    """Shards that an earlier build had finished."""
    was_complete: bool
    """The dataset was there already; nothing was written."""


def build(
    source: Place,
    destination: Place,
    options: Options,
    *,
    distributor: Distributor,
    connections: int,
    restart: bool = False,
) -> Result:
    """Turns the bucket at `source` into a dataset at `destination`.

    `distributor` runs the jobs that make a shard each, with `connections` requests in flight in
    all; neither changes a byte. `restart` deletes what an earlier build made at the destination.

    Raises `UsageError` for a source or destination that does not fit, `WorkError` where another
    build is at work, or a place fails in mid-work: the same call then continues.
    """
    options.check()
    source.check()
    refuse_overlap(source, destination)
    refuse_foreign_names(destination)
    with take_lease(destination) as lease:
        found = look(destination, connections)
        catalog = read_source(source, distributor, connections)
        plan = make_plan(catalog, options)
        identity = Identity(catalog.source, options.seed, plan.recorded, plan.digest)
        if restart:
            discard(found, lease)
            found = Found({})
        _refuse_another(found, identity, destination)

        def make(shards: Sequence[PlannedShard]) -> Iterable[ShardRecord]:
            at_a_time = min(distributor.workers, max(1, len(shards)))
            jobs = [
                ShardJob(
                    shard,
                    {id_: catalog.photos[id_] for id_ in shard.ids},
                    {id_: catalog.metadata[id_] for id_ in shard.ids},
                    source,
                    lease,
                    max(1, connections // at_a_time),
                    Resize.parse(options.resize),
                )
                for shard in shards
            ]
            # The small ones, of which each split has one, fill in at the end.
            jobs.sort(key=lambda job: -len(job.shard.ids))
            total = sum(len(shard.ids) for shard in plan.shards)
            with Progress("shards", total, "photos") as progress:
                progress.update(total - sum(len(job.shard.ids) for job in jobs))
                for record in distributor.run(jobs):
                    yield record
                    progress.update(len(record.written) + len(record.quarantined))

        if found.dataset is not None:
            dataset = found.dataset
            resumed = _mend(dataset, found, plan, lease, make)
        else:
            lease.put(PLAN, identity.to_json())
            records = {p: r for p, r in found.records.items() if found.has(r.shard)}
            resumed = len(records)
            missing = [shard for shard in plan.shards if shard.path not in records]
            records |= {record.shard.path: record for record in make(missing)}
            ordered = [records[shard.path] for shard in plan.shards]
            if not any(record.shard.samples for record in ordered):
                tidy(lease)
                _refuse_useless(source, ordered)
            dataset = _complete(catalog, plan, options, ordered, lease)
        tidy(lease)
        was_complete = found.dataset is not None and resumed == len(_shards(dataset))
        return Result(dataset, catalog, plan, resumed, was_complete)


def _refuse_another(found: Found, identity: Identity, destination: Place) -> None:
    """Raises `UsageError` if what lies at the destination is not to become, or is not, what this
    build makes."""
    if not found.sizes:
        return
    what = "a complete dataset" if found.dataset is not None else "an unfinished build"
    earlier = found.identity
    if earlier is None:
        raise UsageError(
            f"{destination} holds what is left of another build; delete it with --restart, or "
            "choose another --output place"
        )
    if differences := identity.differences(earlier):
        raise UsageError(
            f"{destination} holds {what} made with other options or from another source: this one "
            f"has {', '.join(differences)}; choose another --output place, or delete what is there "
            "and begin anew with --restart"
        )


def _refuse_useless(source: Place, records: Sequence[ShardRecord]) -> NoReturn:
    reasons = Counter(reason for record in records for reason in record.quarantined.values())
    reason, number = reasons.most_common(1)[0]
    raise WorkError(
        f"{source}: none of the {reasons.total():,} photos can be sharded; of {number:,} the "
        f"reason is: {reason}"
    )


def _mend(
    dataset: Dataset,
    found: Found,
    plan: Plan,
    lease: Lease,
    make: Callable[[Sequence[PlannedShard]], Iterable[ShardRecord]],
) -> int:
    """Makes again what a complete dataset lacks; returns how many shards it did not lack.

    `WorkError` where that cannot be made as it was.
    """
    remedy = "make all of it anew with --restart"
    try:
        changed = dataset.files.get(CATALOG) not in (None, _sha256(lease.place.get(CATALOG)))
    except FileNotFoundError:
        changed = True
    if changed:
        raise WorkError(f"{lease.place}/{CATALOG}: missing, or not as it was written; {remedy}")
    shards = {shard.path: shard for shard in _shards(dataset)}
    planned = {shard.path: shard for shard in plan.shards}
    lost = [path for path, shard in shards.items() if not found.has(shard)]
    if lost:
        say(f"{lease.place}: {lost[0]} is gone, {len(lost):,} in all; making them again")
    if not planned.keys() >= {*lost}:
        raise WorkError(f"{lease.place}/{lost[0]}: gone, and no shard of the plan now; {remedy}")
    for record in make([planned[path] for path in lost]):
        path = record.shard.path
        if record.shard.sha256 != shards[path].sha256:
            lease.delete(path)
            lease.delete(record.shard.index)
            raise WorkError(f"{lease.place}/{path}: gone, and its photos have changed; {remedy}")
    return len(shards) - len(lost)


def _complete(
    catalog: Catalog,
    plan: Plan,
    options: Options,
    records: Sequence[ShardRecord],
    lease: Lease,
) -> Dataset:
    """Writes what belongs to the shards, `dataset.json` last."""
    _complete_rows(catalog, records)
    table = format_catalog(catalog.rows)
    dataset = Dataset(
        options.classes,
        options.seed,
        catalog.source,
        plan.recorded,
        {name: _split(name, plan, records, options.classes) for name in SPLITS},
        {CATALOG: _sha256(table)},
    )
    sizes = {entry.path: entry.size_bytes for entry in lease.place.entries()}
    for shard in _shards(dataset):
        if sizes.get(shard.path) != shard.bytes or shard.index not in sizes:
            raise WorkError(
                f"{lease.place}/{shard.path}: was changed or removed while the build was at work; "
                "run the same command to continue"
            )
    lease.put(CATALOG, table)
    lease.put(DATASET, dataset.to_json())
    lease.check()
    return dataset


def _shards(dataset: Dataset) -> list[Shard]:
    return [shard for split in dataset.splits.values() for shard in split.shards]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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
