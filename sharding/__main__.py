"""The commands of stage 1: `bintally synthesize|build|adopt|verify|report`,
or `python -m sharding …`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from bintally.errors import UsageError
from bintally.machine import num_cores
from bintally.terminal.command import main
from sharding.planning.options import Options

if TYPE_CHECKING:
    import pyarrow as pa

    from sharding.adopt import Adoption
    from sharding.build import Result

Places = Annotated[str, tyro.conf.arg(metavar="PLACE")]


@dataclass
class Synthesize:
    """Draw a bucket in the layout of the Amazon Bin Image Dataset, faults included."""

    output: Places
    """An empty folder or s3://bucket/prefix."""
    images: int = 1200
    """Good photos of the padded series; some of the unpadded one and some bad ones come on top."""
    seed: int = 0

    def execute(self) -> int:
        from bintally.storage.opening import open_place
        from synthetic.synthesize import synthesize

        if self.images < 1:
            raise UsageError(f"--images {self.images}: must be at least 1")
        summary = synthesize(open_place(self.output), images=self.images, seed=self.seed)
        print(f"{self.output}: {summary}")
        return 0


@dataclass
class Build:
    """Turn photos and their labels into WebDataset shards with DALI indexes.

    Labels are in ABID's metadata files, in a file of --labels, or in the names of folders.
    Interrupted, the same command continues. The same source, options and seed give the same bytes.
    Nothing is written over or deleted but what an earlier build made there.
    """

    source: Places
    """The photos, a folder or s3://bucket/prefix: as ABID has them (bin-images/<id>.jpg and
    metadata/<id>.json), in a folder for each class (CLASS/NAME.jpg), or anywhere, with --labels."""
    output: Places
    """Where the dataset goes: an empty folder or s3://bucket/prefix."""
    labels: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """A CSV, Parquet or JSON Lines file with a row for each photo: a column path (below the source)
    or id, a column label, class or count (a count, or a class's name), perhaps group, split and
    skus. What else it has goes into the samples' JSON and the catalog."""
    listing: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """A list of the source's objects, which then is not listed: the manifest.json of an S3
    Inventory, or a table of path (or key), size and perhaps etag."""
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)
    workers: int = field(default_factory=num_cores)
    """Processes, each making a shard at a time."""
    connections: int = 64
    """Requests in flight, all workers together."""
    ray: str = ""
    """Make the shards on the Ray cluster at this address (auto, HOST:6379 or ray://HOST:10001)
    instead of in --workers processes here."""
    anonymous: bool = False
    """Send unsigned requests to the source, as a public bucket wants them."""
    append: bool = False
    """Add what the source holds by now to the dataset at --output. What is in a shard stays there,
    and near-copies of an evaluation photo go where it is."""
    restart: bool = False
    """Delete what an earlier build made at --output, finished or not, and begin anew."""

    def execute(self) -> int:
        from bintally.ray_cluster import RayCluster
        from bintally.storage.opening import open_place
        from sharding.build import build
        from sharding.columns import prepare_arrow
        from sharding.distribute import Processes

        prepare_arrow()
        if min(self.workers, self.connections) < 1:
            raise UsageError("--workers and --connections must be at least 1")
        result = build(
            open_place(self.source, anonymous=self.anonymous),
            open_place(self.output),
            self.options,
            distributor=RayCluster(self.ray) if self.ray else Processes(self.workers),
            connections=self.connections,
            labels=self.labels,
            listing=self.listing,
            append=self.append,
            restart=self.restart,
        )
        _print_summary(self.output, result)
        return 0


def _print_summary(output: str, result: Result) -> None:
    import pyarrow.compute as pc

    catalog = result.catalog
    how = f"{result.resumed_shards} shards were there already" if result.resumed_shards else ""
    if result.was_complete:
        how = "was complete already; nothing written"
    print(f"{output}: {how}" if how else output)
    for name, split in result.dataset.splits.items():
        counts = " ".join(f"{c}:{n:,}" for c, n in split.class_counts.items() if n)
        print(
            f"  {name:<10} {split.samples:>9,} samples in {len(split.shards):,} shards ({counts})"
        )
    statuses = {
        row["values"]: row["counts"] for row in catalog["status"].value_counts().to_pylist()
    }
    for status, number in sorted(statuses.items()):
        print(f"  {status:<15} {number:>9,}")
    if missing := result.ids_not_found:
        print(f"  {len(missing):,} ids of the list are not in the source ({missing[0]}, …)")
    sharded = pc.equal(catalog["status"], "sharded")
    if converted := pc.sum(pc.and_(sharded, pc.is_valid(catalog["reason"]))).as_py():
        print(f"  {converted:,} photos were converted (the catalog says how)")
    _print_reasons(catalog.filter(pc.equal(catalog["status"], "quarantined")))
    alone = _without_neighbours(result)
    if alone:
        print(
            f"  {alone:,} photos have no known neighbours (their ids are no numbers, or their "
            "products are not told), and are grouped with none"
        )
    if alone < sum(split.samples for split in result.dataset.splits.values()):
        leaks, evaluated = result.leaks
        at_random = result.leaks_at_random
        beside = f" (a random split: {at_random[0]:,})" if at_random else ""
        print(f"  evaluation photos with the same bin in train: {leaks:,} of {evaluated:,}{beside}")


def _without_neighbours(result: Result) -> int:
    """Photos that --group neighbours cannot compare."""
    import pyarrow.compute as pc

    from sharding.planning.groups import may_have_neighbours

    catalog = result.catalog.filter(pc.is_valid(result.catalog["shard"]))
    if result.dataset.options["group"] != "neighbours":
        return 0
    comparable = may_have_neighbours(catalog["id"], catalog["skus"])
    alone = pc.equal(catalog["group"], catalog["id"]).to_numpy() & ~comparable
    return int(alone.sum())


def _print_reasons(quarantined: pa.Table) -> None:
    for row in quarantined.slice(0, 10).to_pylist():
        print(f"    {row['id']}: {row['reason']}")
    if len(quarantined) > 10:
        print(f"    and {len(quarantined) - 10:,} more, in catalog.parquet")


@dataclass
class Adopt:
    """Make tars that others wrote a dataset, rewriting and copying none of them.

    Folders called train, validation (or val) and test are the splits; all other tars are train.
    Each sample needs a .jpg or .jpeg and a label, a count or a name. What cannot be used is left
    out, and named in catalog.parquet. Called again, it follows tars that have come or changed.
    """

    place: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PLACE")]
    """The tars: a folder or s3://bucket/prefix."""
    label: str = "cls"
    """Where a sample's label is: cls or txt, its file of that extension, or json:KEY, that key of
    its JSON (json:a.b is inside a)."""
    output: Annotated[str | None, tyro.conf.arg(metavar="DEST")] = None
    """Where dataset.json, catalog and indexes go, which then point at the tars. If not given,
    beside them."""

    def execute(self) -> int:
        from bintally.storage.opening import open_place
        from sharding.adopt import adopt
        from sharding.distribute import Processes

        adoption = adopt(
            open_place(self.place),
            None if self.output is None else open_place(self.output),
            self.label,
            distributor=Processes(num_cores()),
        )
        _print_adoption(self.output or self.place, adoption)
        return 0


def _print_adoption(place: str, adoption: Adoption) -> None:
    dataset = adoption.dataset
    print(f"{place}: was complete already; nothing written" if adoption.was_complete else place)
    for name, split in dataset.splits.items():
        print(f"  {name:<10} {split.samples:>9,} samples in {len(split.shards):,} shards")
    first, last = dataset.classes[0], dataset.classes[-1]
    kind = "names" if isinstance(first, str) else "counts"
    print(f"  {len(dataset.classes):,} classes, {kind} from {first} to {last}")
    if len(adoption.quarantined):
        print(f"  {'quarantined':<15} {len(adoption.quarantined):>9,}")
    _print_reasons(adoption.quarantined)


@dataclass
class Verify:
    """Read every byte of a dataset and name whatever is not as it was written (exit 1)."""

    place: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PLACE")]
    """The dataset: a folder or s3://bucket/prefix."""
    decode: bool = False
    """Decode every photo as well."""

    def execute(self) -> int:
        from bintally.storage.opening import open_place
        from sharding.distribute import Processes
        from sharding.verify import verify

        dataset, damage = verify(
            open_place(self.place), decode=self.decode, distributor=Processes(num_cores())
        )
        for line in damage:
            print(line, file=sys.stderr)
        samples = sum(split.samples for split in dataset.splits.values())
        shards = sum(len(split.shards) for split in dataset.splits.values())
        found = f"{len(damage):,} faults" if damage else "whole"
        print(f"{self.place}: {samples:,} samples in {shards:,} shards: {found}")
        return 1 if damage else 0


@dataclass
class Report:
    """Describe what a dataset's source holds, as one HTML page and PNG figures.

    Totals, quantities, products and their repetition, classes, photo sizes, quarantine by reason.
    """

    place: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PLACE")]
    """The dataset: a folder or s3://bucket/prefix."""
    output: Path | None = None
    """The folder to write to. If not given, PLACE-report beside the dataset's folder, or here for
    a dataset on S3: never inside the dataset, where `verify` would find it."""

    def execute(self) -> int:
        from bintally.storage.folder import Folder
        from bintally.storage.opening import open_place
        from sharding.report.page import write_report

        place = open_place(self.place)
        beside = place.root.resolve() if isinstance(place, Folder) else Path(place.url).absolute()
        folder = beside.parent if isinstance(place, Folder) else Path()
        print(write_report(place, self.output or folder / f"{beside.name}-report"))
        return 0


COMMANDS = Synthesize | Build | Adopt | Verify | Report

if __name__ == "__main__":
    sys.exit(
        main(
            COMMANDS,
            sys.argv[1:],
            prog="python -m sharding",
            description="Stage 1: a bucket of bin photos becomes shards.",
        )
    )
