"""Building a dataset: catalog, plan, shards, and `dataset.json` last.

Interrupted anywhere, the same command goes on where it stopped: every shard has a record in
`.build/`, and is finished if it is there as its record says. One build at a time works on a
destination, and no build throws away what another one made, unless it is told to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING

from bintally.dataset.catalog import read_catalog
from bintally.dataset.labels import Classes
from bintally.dataset.manifest import CATALOG, DATASET, Dataset
from bintally.dataset.photo import Resize, prepare_photo
from bintally.errors import UsageError, WorkError
from bintally.storage.lease import Lease
from bintally.storage.opening import take_lease
from bintally.storage.place import Place
from bintally.terminal.progress import Progress, say
from sharding.destination import (
    FILES,
    PLAN,
    Found,
    Identity,
    discard,
    discard_unfinished,
    look,
    refuse_foreign_names,
    refuse_overlap,
    tidy,
)
from sharding.distribute import Distributor
from sharding.finish import describe_shards, label_texts, refuse_useless
from sharding.integrity import find_damaged
from sharding.planning.groups import count_leaks
from sharding.planning.growth import held_splits
from sharding.planning.options import Options
from sharding.planning.plan import Plan, PlannedShard, make_plan
from sharding.planning.selection import missing_ids, read_ids
from sharding.shard import ShardJob, ShardRecord
from sharding.source.layout import read_source
from sharding.source.rows import SourceRows

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Result", "build"]


@dataclass(frozen=True)
class Result:
    """What a build did."""

    dataset: Dataset
    catalog: pa.Table
    """As `catalog.parquet` holds it."""
    ids_not_found: Sequence[str]
    """What the list of --ids names and the source does not hold."""
    leaks: tuple[int, int]
    """Evaluation samples with a neighbour in train, and evaluation samples."""
    leaks_at_random: tuple[int, int] | None
    """The same for a split that pays no heed to neighbours; None where nothing was split."""
    resumed_shards: int
    """Shards that an earlier build had finished."""
    was_complete: bool
    """The dataset was there already; nothing was written."""


@dataclass(frozen=True)
class _Maker:
    """Makes shards."""

    source: Place
    rows: SourceRows
    options: Options
    lease: Lease
    distributor: Distributor
    connections: int

    def make(
        self, table: pa.Table, shards: Sequence[PlannedShard], classes: Classes, done: int = 0
    ) -> Iterator[ShardRecord]:
        """The shards, whose rows are those of `table`, as they are written; `done` photos are."""
        import pyarrow.compute as pc

        at_a_time = min(self.distributor.workers, max(1, len(shards)))
        connections = max(1, self.connections // at_a_time)
        resize = Resize.parse(self.options.resize)
        prepare = partial(prepare_photo, resize=resize, convert=not self.rows.is_abid)
        labels = label_texts(table, classes)
        # Which of the source's rows each one is.
        source_rows = pc.index_in(table["id"], self.rows.table["id"])

        def job(shard: PlannedShard) -> ShardJob:
            rows = source_rows.take(shard.rows)
            photos = self.rows.photos(rows)
            photos = photos.append_column("label", labels.take(shard.rows)).combine_chunks()
            metadata = self.rows.json.take(rows.to_numpy())
            return ShardJob(
                shard.path,
                shard.index,
                photos,
                metadata,
                self.source,
                self.lease,
                connections,
                prepare,
            )

        # The small ones, of which each split has one, fill in at the end.
        ordered = sorted(shards, key=lambda shard: -len(shard.rows))
        with Progress("shards", done + sum(len(s.rows) for s in shards), "photos") as progress:
            progress.update(done)
            for record in self.distributor.run(map(job, ordered)):
                yield record
                progress.update(len(record.photos))


def build(
    source: Place,
    destination: Place,
    options: Options,
    *,
    distributor: Distributor,
    connections: int,
    labels: str | None = None,
    listing: str | None = None,
    append: bool = False,
    restart: bool = False,
) -> Result:
    """Turns the photos at `source` into a dataset at `destination`.

    `labels` and `listing` are files as `read_source` takes them. `distributor` runs the jobs that
    make a shard each, with `connections` requests in flight in all; neither changes a byte.
    `append` adds what the source holds by now to a complete dataset; `restart` deletes what an
    earlier build made at the destination.

    Raises `UsageError` for a source or destination that does not fit, `WorkError` where another
    build is at work, or a place fails in mid-work: the same call then continues.
    """
    options.check()
    source.check()
    refuse_overlap(source, destination)
    refuse_foreign_names(destination)
    with take_lease(destination) as lease:
        found = look(destination, connections)
        if append and found.dataset is None:
            raise UsageError(
                f"{destination}: no complete dataset to append to; build it without --append first"
            )
        # Numba takes half a second to import, while nothing is to be had but a listing.
        Thread(target=import_module, args=["sharding.planning.loops"]).start()
        rows = read_source(
            source, options, distributor, connections, labels=labels, listing=listing
        )
        if restart:
            discard(found, lease)
            found = Found({})
        maker = _Maker(source, rows, options, lease, distributor, connections)
        listed = None if options.ids is None else read_ids(options.ids)
        identity = Identity(rows.source, options.seed, options.recorded(listed), None)
        plan = None
        if found.dataset is None:
            plan = make_plan(rows, options)
            _refuse_another(found, replace(identity, plan=plan.digest), destination)
        else:
            _refuse_another(found, identity, destination, append)
            catalog = _read_catalog(found, lease, append)
            num_whole = _mend(maker, found.dataset, catalog)
            if append and rows.source != found.dataset.source:
                plan = make_plan(rows, options, catalog, found.dataset.classes)
        if plan is None:
            assert found.dataset is not None, "what is not there is planned"
            discard_unfinished(found, lease)
            result = _describe_complete(found.dataset, catalog, listed, num_whole)
        else:
            records, resumed = _write_shards(maker, found, plan)
            del maker, rows  # Large, and of no more use.
            result = _write_dataset(lease, found, plan, records, options.seed, resumed)
        tidy(lease)
        return result


def _refuse_another(
    found: Found, identity: Identity, destination: Place, append: bool = False
) -> None:
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
    if differences := identity.differences(earlier, of_source=not append):
        only_grown = not identity.differences(earlier, of_source=False)
        remedy = "add what is new with --append, " if found.dataset and only_grown else ""
        raise UsageError(
            f"{destination} holds {what} made with other options or from another source: this one "
            f"has {', '.join(differences)}; {remedy}choose another --output place, or delete what "
            "is there and begin anew with --restart"
        )


def _write_shards(maker: _Maker, found: Found, plan: Plan) -> tuple[list[ShardRecord], int]:
    """Writes the shards of a plan that are not there yet. Returns what became of all of them, and
    how many were there."""
    lease = maker.lease
    identity = Identity(plan.source, maker.options.seed, plan.recorded, plan.digest)
    if found.unfinished is not None and found.unfinished.plan != plan.digest:
        # The source has grown again since an append of it was interrupted.
        discard_unfinished(found, lease)
    lease.put(PLAN, identity.to_json())
    records = {path: r for path, r in found.records.items() if found.has(r.shard)}
    missing = [shard for shard in plan.shards if shard.path not in records]
    done = sum(len(shard.rows) for shard in plan.shards if shard.path in records)
    resumed = len(records)
    for record in maker.make(plan.table, missing, plan.classes, done):
        records[record.shard.path] = record
    ordered = [records[shard.path] for shard in plan.shards]
    if found.dataset is None and not any(record.shard.samples for record in ordered):
        tidy(lease)
        refuse_useless(maker.source, ordered)
    return ordered, resumed


def _write_dataset(
    lease: Lease,
    found: Found,
    plan: Plan,
    records: Sequence[ShardRecord],
    seed: int,
    resumed: int,
) -> Result:
    """Writes what belongs to finished shards, `dataset.json` last."""
    dataset, table, files = describe_shards(plan, records, seed, found.dataset)
    sizes = {entry.path: entry.size_bytes for entry in lease.place.entries()}
    for shard in dataset.shards:
        if sizes.get(shard.path) != shard.bytes or shard.index not in sizes:
            raise WorkError(
                f"{lease.place}/{shard.path}: was changed or removed while the build was at work; "
                "run the same command to continue"
            )
    sums = {path: [*found.pending.get(path, ()), sum_] for path, sum_ in dataset.files.items()}
    lease.put(FILES, json.dumps(sums).encode())
    for path, data in files.items():
        lease.put(path, data)
    lease.put(DATASET, dataset.to_json())
    lease.check()
    return Result(
        dataset, table, plan.ids_not_found, plan.leaks, plan.leaks_at_random, resumed, False
    )


REMEDY = "make all of it anew with --restart"


def _read_catalog(found: Found, lease: Lease, append: bool) -> pa.Table:
    """The catalog of a complete dataset; of an interrupted append's, what belongs to it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    dataset = found.dataset
    assert dataset is not None, "there is a catalog where there is a dataset"
    try:
        data = lease.place.get(CATALOG)
    except FileNotFoundError:
        raise WorkError(f"{lease.place}/{CATALOG}: missing; {REMEDY}") from None
    sha256 = hashlib.sha256(data).hexdigest()
    catalog = read_catalog(data)
    if dataset.files.get(CATALOG) in (None, sha256):
        return catalog
    if sha256 not in found.pending.get(CATALOG, ()):
        raise WorkError(f"{lease.place}/{CATALOG}: not as it was written; {REMEDY}")
    if not append:
        raise UsageError(
            f"{lease.place} is being added to, and that was interrupted; finish it with --append"
        )
    own = pa.array([shard.path for shard in dataset.shards])
    shard = catalog["shard"].cast(pa.string())
    shard = pc.if_else(pc.is_in(shard, own), shard, None)
    return catalog.set_column(catalog.schema.get_field_index("shard"), "shard", shard)


def _mend(maker: _Maker, dataset: Dataset, catalog: pa.Table) -> int:
    """Makes again what a complete dataset lacks; returns how many shards it did not lack.

    `WorkError` where that cannot be made as it was.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    place = maker.lease.place
    shards = {shard.path: shard for shard in dataset.shards}
    lost = find_damaged(place, dataset.shards, maker.distributor)
    if not lost:
        return len(shards)
    say(f"{place}: {lost[0].path} is gone or damaged, {len(lost):,} in all; making them again")
    number = pc.index_in(catalog["shard"].cast(pa.string()), pa.array([s.path for s in lost]))
    number = number.fill_null(-1).to_numpy()
    position = catalog["position"].fill_null(-1).to_numpy()
    order = np.lexsort((position, number))
    begins = np.searchsorted(number[order], np.arange(len(lost) + 1))
    rows = [order[begins[n] : begins[n + 1]] for n in range(len(lost))]
    there = pc.is_in(catalog["id"], maker.rows.table["id"]).to_numpy()
    for shard, own in zip(lost, rows, strict=True):
        if not there[own].all() or len(own) != shard.samples:
            raise WorkError(f"{place}/{shard.path}: gone, and so are photos of it; {REMEDY}")
    planned = [
        PlannedShard(shard.path.partition("/")[0], shard.path, shard.index, own)
        for shard, own in zip(lost, rows, strict=True)
    ]
    for record in maker.make(catalog, planned, dataset.classes):
        path = record.shard.path
        if record.shard.sha256 != shards[path].sha256:
            maker.lease.delete(path)
            maker.lease.delete(record.shard.index)
            raise WorkError(f"{place}/{path}: gone, and its photos have changed; {REMEDY}")
    return len(shards) - len(lost)


def _describe_complete(
    dataset: Dataset, catalog: pa.Table, listed: Sequence[str] | None, num_whole: int
) -> Result:
    splits = held_splits(catalog)
    groups = catalog["group"].combine_chunks().dictionary_encode().indices
    held = splits >= 0
    leaks = count_leaks(groups.fill_null(-1).to_numpy()[held], splits[held])
    return Result(
        dataset,
        catalog,
        missing_ids(listed or [], catalog["id"]),
        leaks,
        None,
        num_whole,
        num_whole == len(dataset.shards),
    )
