"""Is a dataset what its build wrote? Every byte is read; nothing that is wrong goes unnamed.

Of tars that others wrote, the samples are those of the index, each of which has to lie in the tar.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import TYPE_CHECKING

from bintally.dataset.catalog import read_catalog
from bintally.dataset.manifest import (
    CATALOG,
    DATASET,
    SPLITS,
    Dataset,
    open_tars,
    read_dataset,
)
from bintally.storage.place import Place
from bintally.terminal.progress import Progress
from sharding.destination import is_record
from sharding.distribute import Distributor
from sharding.verify_job import VerifyJob

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["verify"]


def verify(place: Place, *, decode: bool, distributor: Distributor) -> tuple[Dataset, list[str]]:
    """Compares a dataset with its own sums; `decode` also decodes every photo. `distributor` runs
    the jobs that read a shard each.

    Returns the dataset, and a line for each damage found, in the dataset's order: none if it is
    whole. Raises as `read_dataset` does where there is no complete dataset, `WorkError` where
    reading fails.
    """
    import pyarrow as pa

    dataset = read_dataset(place)
    tars = open_tars(place, dataset)
    damage = [f"{DATASET}: {complaint}" for complaint in _contradictions(dataset)]
    shards = [(name, shard) for name, split in dataset.splits.items() for shard in split.shards]
    known = {DATASET, CATALOG, *dataset.files, *(p for _, s in shards for p in (s.path, s.index))}
    # What lies beside the tars of others is theirs.
    damage += [
        f"{entry.path}: is no part of the dataset"
        for entry in (() if dataset.is_adopted and tars is place else place.entries())
        # What a build that was killed at its very end had no time to remove is no damage.
        if entry.path not in known and not is_record(entry.path)
    ]
    catalog, complaints = _read_files(place, dataset)
    damage += complaints
    paths = [shard.path for _, shard in shards]
    rows: Sequence[pa.RecordBatch | None]
    rows = [None] * len(shards) if catalog is None else _by_shard(catalog, paths)
    rules = replace(dataset, splits={}, files={})
    jobs = [
        VerifyJob(number, place, tars, rules, name, shard, own, decode)
        for number, ((name, shard), own) in enumerate(zip(shards, rows, strict=True))
    ]
    ids: list[pa.Array] = [None] * len(jobs)
    found: list[Sequence[str]] = [()] * len(jobs)
    with Progress("verify", sum(s.samples for _, s in shards), "samples") as progress:
        for result in distributor.run(jobs):
            ids[result.number] = pa.array(result.ids, pa.string())
            found[result.number] = result.damage
            progress.update(shards[result.number][1].samples)
    damage += chain.from_iterable(found)
    strangers = () if catalog is None else _strangers(catalog, paths)
    damage += [f"{CATALOG}: names a shard {path} that {DATASET} does not" for path in strangers]
    damage += _duplicates(pa.chunked_array(ids, pa.string()))
    return dataset, damage


def _read_files(place: Place, dataset: Dataset) -> tuple[pa.RecordBatch | None, list[str]]:
    """The catalog (`_columns`), if it can be read, and what is wrong with it and with all else that
    is no shard."""
    catalog, damage = None, []
    for path in dict.fromkeys([CATALOG, *dataset.files]):
        try:
            data = place.get(path)
        except FileNotFoundError:
            damage.append(f"{path}: missing")
            continue
        if dataset.files.get(path) not in (None, hashlib.sha256(data).hexdigest()):
            damage.append(f"{path}: its sha256 is not the one in {DATASET}")
        if path == CATALOG:
            try:
                catalog = _columns(read_catalog(data))
            except ValueError as error:
                damage.append(f"{path}: not readable: {error}")
    return catalog, damage


def _columns(catalog: pa.Table) -> pa.RecordBatch:
    """What a catalog says of samples; where a class is a count, the label is that as text.

    Raises `ValueError` where a column is of another type than a catalog's.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        label = catalog["count"].cast(pa.string())
        if "label" in catalog.column_names:
            label = pc.coalesce(catalog["label"].cast(pa.string()), label)
        columns = {
            "shard": catalog["shard"].cast(pa.string()),
            "id": catalog["id"].cast(pa.string()),
            "label": label,
            "status": catalog["status"].cast(pa.string()),
            "split": catalog["split"].cast(pa.string()),
            "position": catalog["position"].cast(pa.int32()),
            "crc32": catalog["crc32"].cast(pa.uint32()),
        }
    except pa.ArrowException as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    return pa.record_batch({name: column.combine_chunks() for name, column in columns.items()})


def _by_shard(catalog: pa.RecordBatch, paths: Sequence[str]) -> list[pa.RecordBatch]:
    """The rows of each shard, in the catalog's order; views of one copy of all."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    numbers = pc.index_in(catalog["shard"], pa.array(paths, pa.string()))
    numbers = numbers.fill_null(len(paths)).to_numpy()
    order = np.argsort(numbers, kind="stable")
    rows = catalog.drop_columns("shard").take(order)
    bounds = np.searchsorted(numbers[order], np.arange(len(paths) + 1)).tolist()
    return [rows.slice(begin, end - begin) for begin, end in pairwise(bounds)]


def _strangers(catalog: pa.RecordBatch, paths: Sequence[str]) -> list[str]:
    """The shards that a catalog names, and that are none of `paths`."""
    named = catalog["shard"].unique().drop_null().to_pylist()
    known = {*paths}
    return [path for path in named if path not in known]


def _duplicates(ids: pa.ChunkedArray) -> list[str]:
    """A line for each id that comes more than once."""
    import pyarrow.compute as pc

    counted = ids.value_counts()
    several = counted.filter(pc.greater(counted.field("counts"), 1))
    return [
        f"sample {one['values']}: is in the dataset {one['counts']} times"
        for one in several.to_pylist()
    ]


def _contradictions(dataset: Dataset) -> Iterator[str]:
    """Where `dataset.json` disagrees with itself."""
    least, most = dataset.options.get("min_count"), dataset.options.get("max_count")
    # Of labels that are names, the options do not tell the classes.
    if (
        most is not None
        and dataset.label == "cls"
        and [*dataset.classes] != [*range(least or 0, most + 1)]
    ):
        yield f"its classes are not the counts from {least or 0} to {most} of its options"
    classes = {str(count) for count in dataset.classes}
    if {*dataset.splits} != {*SPLITS}:
        yield f"its splits are not {', '.join(SPLITS)}"
    for name, split in dataset.splits.items():
        if split.samples != sum(shard.samples for shard in split.shards):
            yield f"{name}: its number of samples is not that of its shards"
        counts = Counter[str]()
        for shard in split.shards:
            counts.update(shard.class_counts)
            if sum(shard.class_counts.values()) != shard.samples:
                yield f"{shard.path}: its counts by class do not add up to its samples"
        if +counts != +Counter(split.class_counts):
            yield f"{name}: its counts by class are not those of its shards"
        if not classes >= split.class_counts.keys() | counts.keys():
            yield f"{name}: has counts that are none of its classes"
