"""Adopting: shards that others wrote become a dataset, and no tar is rewritten or copied.

What is added (`dataset.json`, the catalog and the indexes) lies beside the tars, or elsewhere and
points at them. Adopting again gives the same bytes, adds what is missing, and follows tars that
have come, gone or changed. Only what an adoption wrote is ever replaced or deleted.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from bintally.dataset.catalog import CatalogRow, format_catalog
from bintally.dataset.labels import LABEL_RULES, Classes, are_counts, check_label_rule
from bintally.dataset.manifest import (
    ADOPT,
    CATALOG,
    DATASET,
    SPLITS,
    Dataset,
    Shard,
    Split,
)
from bintally.errors import UsageError, WorkError
from bintally.storage.folder import Folder
from bintally.storage.lease import Lease
from bintally.storage.opening import take_lease
from bintally.storage.place import Entry, Place
from bintally.terminal.progress import Progress
from sharding.adoption.adopted_tar import AdoptedTar, AdoptJob
from sharding.destination import is_index_of, is_record, overlap
from sharding.distribute import Distributor

__all__ = ["Adoption", "adopt"]

SPLIT_OF = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
"""What folders are called, and the splits that they are; all other tars are `train`."""
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Adoption:
    """What became of tars that others wrote."""

    dataset: Dataset
    quarantined: Sequence[CatalogRow]
    was_complete: bool
    """It was all there already; nothing was written."""


def adopt(tars: Place, output: Place | None, label: str, *, distributor: Distributor) -> Adoption:
    """Makes the tars at a place a dataset, beside them or at `output`.

    `label` says which file of a sample holds its label, and how (`read_label`). Raises `UsageError`
    for places and rules that do not fit, `WorkError` where a tar is damaged or no sample is of use.
    """
    try:
        check_label_rule(label)
    except ValueError as error:
        raise UsageError(f"--label {label}: {error}") from error
    tars.check()
    where = _tars_from(tars, output)
    place = output or tars
    entries = _find_tars(tars)
    earlier = _earlier(place)
    with take_lease(place) as lease:
        if output is not None:
            _refuse_foreign(output, entries, earlier)
        jobs = [AdoptJob(tars, entry, label) for entry in entries]
        read = []
        with Progress("adopt", len(jobs), "tars") as progress:
            for tar in distributor.run(jobs):
                read.append(tar)
                progress.update(1)
        read.sort(key=lambda tar: tar.path)
        dataset, rows, files = _describe(read, label, where)
        if not any(split.samples for split in dataset.splits.values()):
            _refuse_useless(tars, rows)
        written = _write(lease, earlier, dataset, files, output is None)
    return Adoption(dataset, [r for r in rows if r.status == "quarantined"], not written)


def _tars_from(tars: Place, output: Place | None) -> str | None:
    """How a dataset at `output` names the place of its tars."""
    if output is None:
        return None
    if overlap(tars, output):
        raise UsageError(
            f"{tars} and --output {output}: one contains the other; leave --output out to have the "
            "dataset beside its tars, or choose another place"
        )
    if not isinstance(tars, Folder):
        return tars.url
    if not isinstance(output, Folder):
        raise UsageError(
            f"{tars} and --output {output}: a dataset on S3 cannot point at a folder of this "
            "machine; choose a folder, or copy the tars to S3"
        )
    if output.root.exists():
        output.check()
    # Links resolved, for `..` goes up from where a link leads.
    paths = (os.path.realpath(place.root) for place in (tars, output))
    return os.path.relpath(*paths).replace(os.sep, "/")


def _find_tars(tars: Place) -> list[Entry]:
    found = []
    for entry in tars.entries():
        if is_record(entry.path):
            raise UsageError(f"{tars} holds an unfinished `bintally build`, which is not adopted")
        if entry.path.lower().endswith(COMPRESSED):
            raise UsageError(
                f"{tars}/{entry.path}: is compressed, so that no index can point into it; unpack "
                "it to a .tar, or move it away"
            )
        if entry.path.endswith(".tar"):
            found.append(entry)
    if not found:
        raise UsageError(f"{tars}: no tars here")
    return sorted(found, key=lambda entry: entry.path)


def _earlier(place: Place) -> Dataset | None:
    """What an earlier adoption made at a place."""
    try:
        data = place.get(DATASET)
    except FileNotFoundError:
        return None
    try:
        dataset = Dataset.from_json(data)
    except (ValueError, KeyError, TypeError, AttributeError):
        dataset = None
    if dataset is None or not dataset.is_adopted:
        raise UsageError(
            f"{place} holds a {DATASET} that `adopt` did not make; name another place with --output"
        )
    return dataset


def _refuse_foreign(output: Place, entries: Sequence[Entry], earlier: Dataset | None) -> None:
    """Raises `UsageError` if there is anything at `output` that no adoption names so."""
    own = {DATASET, CATALOG, *(_index_path(entry.path) for entry in entries)}
    own |= {shard.index for shard in _shards(earlier)}
    for entry in output.entries():
        if entry.path not in own:
            raise UsageError(
                f"{output} holds {entry.path}, which is no part of this dataset; choose an empty "
                "--output place"
            )


def _describe(
    tars: Sequence[AdoptedTar], label: str, where: str | None
) -> tuple[Dataset, list[CatalogRow], dict[str, bytes]]:
    """The dataset that tars are, the rows of its catalog, and its files but for `dataset.json`."""
    used = [[s for s in tar.samples if s.complaint is None] for tar in tars]
    labels = {sample.label for samples in used for sample in samples}
    numbers, names = [n for n in labels if isinstance(n, int)], {str(name) for name in labels}
    classes: Classes = sorted(names) if len(numbers) < len(labels) else sorted(numbers)
    keys: Counter[str] = Counter()
    for tar in tars:
        keys.update({sample.key for sample in tar.samples})
    shared = any(number > 1 for number in keys.values())

    shards: dict[str, list[Shard]] = {name: [] for name in SPLITS}
    files = {}
    for tar, samples in zip(tars, used, strict=True):
        if samples:
            index = _index_path(tar.path)
            files[index] = tar.index
            found = Counter(str(sample.label) for sample in samples)
            # Those that it has, for of a thousand classes that may be a few.
            counts = {str(name): found[str(name)] for name in classes if str(name) in found}
            shards[_split_of(tar.path)].append(
                Shard(tar.path, index, len(samples), tar.size_bytes, tar.sha256, counts)
            )
    splits = {}
    for name, own in shards.items():
        total: Counter[str] = Counter({str(c): 0 for c in classes})
        for shard in own:
            total.update(shard.class_counts)
        splits[name] = Split(total.total(), dict(total), own)
    source = {
        "tars": len(tars),
        "bytes": sum(tar.size_bytes for tar in tars),
        "samples": sum(len(tar.samples) for tar in tars),
    }
    dataset = Dataset(
        classes,
        0,
        source,
        {"command": ADOPT},
        splits,
        label=label,
        ids="path/key" if shared else "key",
        tars=where,
    )
    rows = _rows(tars, dataset)
    files[CATALOG] = format_catalog(rows)
    dataset = replace(dataset, files={CATALOG: hashlib.sha256(files[CATALOG]).hexdigest()})
    return dataset, rows, files


def _rows(tars: Sequence[AdoptedTar], dataset: Dataset) -> list[CatalogRow]:
    """What became of each sample, in the order of the tars."""
    shards = {shard.path: shard for shard in _shards(dataset)}
    counted = are_counts(dataset.classes)
    ids = set[str]()
    rows = []
    for tar in tars:
        # One of which nothing is used is no shard.
        shard = shards.get(tar.path) or Shard(tar.path, "", 0, tar.size_bytes, tar.sha256, {})
        position = 0
        for sample in tar.samples:
            id_ = _new_id(dataset.sample_id(shard, sample.key), ids)
            if sample.complaint is not None:
                reason = f"{tar.path}: {sample.complaint}"
                rows.append(CatalogRow(id_, status="quarantined", reason=reason))
                continue
            row = CatalogRow(
                id_,
                count=int(sample.label) if counted else None,
                label=None if counted else str(sample.label),
                split=_split_of(tar.path),
                shard=tar.path,
                position=position,
                bytes=sample.size_bytes,
                width=sample.width,
                height=sample.height,
                reason=sample.note,
                crc32=sample.crc32,
            )
            rows.append(row)
            position += 1
    return rows


def _new_id(id_: str, ids: set[str]) -> str:
    """An id that no row has yet: what comes again in a tar is never used, and gets a number."""
    number, new = 1, id_
    while new in ids:
        number += 1
        new = f"{id_}#{number}"
    ids.add(new)
    return new


def _refuse_useless(tars: Place, rows: Sequence[CatalogRow]) -> None:
    if not rows:
        raise WorkError(f"{tars}: its tars are empty")
    raise WorkError(
        f"{tars}: none of the {len(rows):,} samples can be used; the first is in {rows[0].reason}; "
        f"--label says where labels are: {LABEL_RULES}"
    )


def _write(
    lease: Lease,
    earlier: Dataset | None,
    dataset: Dataset,
    files: Mapping[str, bytes],
    beside: bool,
) -> bool:
    """Writes what is missing or has changed, `dataset.json` last; whether there was any.

    Raises `UsageError`, before anything is written, where a file is in the way that is not proven
    to be an adoption's.
    """
    place = lease.place
    there = {entry.path for entry in place.entries()}
    stale = {shard.index for shard in _shards(earlier)} - files.keys()
    own = _Own(earlier)
    todo = {}
    for path in sorted((files.keys() | stale) & there):
        data = place.get(path)
        if data == files.get(path):
            continue
        if not own.has(path, data):
            remedy = "name another place with --output" if beside else "choose an empty one"
            raise UsageError(
                f"{place} holds {path}, which `adopt` did not write or somebody has changed; move "
                f"it away, or {remedy}"
            )
        todo[path] = files.get(path)
    todo |= {path: data for path, data in files.items() if path not in there}
    manifest = dataset.to_json()
    if not todo and DATASET in there and place.get(DATASET) == manifest:
        return False
    for path, content in sorted(todo.items()):
        if content is None:
            lease.delete(path)
        else:
            lease.put(path, content)
    lease.put(DATASET, manifest)
    lease.check()
    return True


class _Own:
    """Tells what an earlier adoption wrote."""

    def __init__(self, earlier: Dataset | None) -> None:
        self._catalog = None if earlier is None else earlier.files.get(CATALOG)
        self._indexes = defaultdict[str, list[Shard]](list)
        for shard in _shards(earlier):
            self._indexes[shard.index].append(shard)

    def has(self, path: str, data: bytes) -> bool:
        if path == CATALOG:
            return hashlib.sha256(data).hexdigest() == self._catalog
        return any(is_index_of(data, shard) for shard in self._indexes[path])


def _shards(dataset: Dataset | None) -> list[Shard]:
    return [] if dataset is None else [s for split in dataset.splits.values() for s in split.shards]


def _index_path(tar: str) -> str:
    return f"{tar.removesuffix('.tar')}.idx"


def _split_of(path: str) -> str:
    """The split of a tar, by the first of its folders that is called as one."""
    folders = PurePosixPath(path).parent.parts
    return next((SPLIT_OF[folder] for folder in folders if folder in SPLIT_OF), "train")
