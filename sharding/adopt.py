"""Adopting: shards that others wrote become a dataset, and no tar is rewritten or copied.

What is added (`dataset.json`, the catalog and the indexes) lies beside the tars, or elsewhere and
points at them. Adopting again gives the same bytes, adds what is missing, and follows tars that
have come, gone or changed. Only what an adoption wrote is ever replaced or deleted.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bintally.dataset.labels import LABEL_RULES, check_label_rule
from bintally.dataset.manifest import CATALOG, DATASET, Dataset, Shard
from bintally.errors import CommandError, UsageError, WorkError
from bintally.storage.folder import Folder
from bintally.storage.lease import Lease
from bintally.storage.opening import take_lease
from bintally.storage.place import Entry, Place
from bintally.terminal.progress import Progress
from sharding.adoption.adopted_dataset import describe_tars
from sharding.adoption.adopted_tar import AdoptJob, index_path
from sharding.destination import is_index_of, is_record, overlap
from sharding.distribute import Distributor

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Adoption", "adopt"]

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Adoption:
    """What became of tars that others wrote."""

    dataset: Dataset
    quarantined: pa.Table
    """The rows of the catalog of samples that are not used."""
    was_complete: bool
    """It was all there already; nothing was written."""


def adopt(tars: Place, output: Place | None, label: str, *, distributor: Distributor) -> Adoption:
    """Makes the tars at a place a dataset, beside them or at `output`.

    `label` says which file of a sample holds its label, and how (`read_label`). Raises `UsageError`
    for places and rules that do not fit, `WorkError` where a tar is damaged, no sample is of use or
    the place cannot be written to.
    """
    import pyarrow.compute as pc

    try:
        check_label_rule(label)
    except ValueError as error:
        raise UsageError(f"--label {label}: {error}") from error
    tars.check()
    where = _tars_from(tars, output)
    place = output or tars
    entries = _find_tars(tars)
    earlier = _earlier(place)
    with _output_named_as_remedy(output):
        lease = take_lease(place)
    with lease:
        if output is not None:
            _refuse_foreign(output, entries, earlier)
        jobs = [AdoptJob(tars, entry, label) for entry in entries]
        read = []
        with Progress("adopt", len(jobs), "tars") as progress:
            for tar in distributor.run(jobs):
                read.append(tar)
                progress.update(1)
        read.sort(key=lambda tar: tar.path)
        dataset, catalog, files = describe_tars(read, label, where)
        quarantined = catalog.filter(pc.is_null(catalog["position"]))
        if len(quarantined) == len(catalog):
            _refuse_useless(tars, quarantined)
        with _output_named_as_remedy(output):
            written = _write(lease, earlier, dataset, files)
    return Adoption(dataset, quarantined, not written)


@contextmanager
def _output_named_as_remedy(output: Place | None) -> Iterator[None]:
    """Says of what keeps a dataset from lying beside its tars that it may lie elsewhere."""
    try:
        yield
    except CommandError as error:
        if output is not None:
            raise
        raise type(error)(f"{error}; --output names another place for the dataset") from error


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
            text = entry.path.encode(errors="backslashreplace").decode()
            if text != entry.path:
                raise UsageError(
                    f"{tars}/{text}: its name is not UTF-8, as a catalog wants it; rename it"
                )
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
    own = {DATASET, CATALOG, *(index_path(entry.path) for entry in entries)}
    own |= {shard.index for shard in _shards(earlier)}
    for entry in output.entries():
        if entry.path not in own:
            raise UsageError(
                f"{output} holds {entry.path}, which is no part of this dataset; choose an empty "
                "--output place"
            )


def _refuse_useless(tars: Place, samples: pa.Table) -> None:
    if not len(samples):
        raise WorkError(f"{tars}: its tars are empty")
    raise WorkError(
        f"{tars}: none of the {len(samples):,} samples can be used; the first is in "
        f"{samples['reason'][0].as_py()}; --label says where labels are: {LABEL_RULES}"
    )


def _write(
    lease: Lease,
    earlier: Dataset | None,
    dataset: Dataset,
    files: Mapping[str, bytes],
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
            raise UsageError(
                f"{place} holds {path}, which `adopt` did not write or somebody has changed; move "
                "it away"
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
    return [] if dataset is None else dataset.shards
