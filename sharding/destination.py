"""What lies where a dataset is to go, and whose it is.

A build replaces and deletes only what its own names and records prove to be a build's: a shard that
`dataset.json` or a record in `.build/` names, as long as its size is the recorded one. Anything
else at a destination is somebody's, and the destination is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from bintally.dataset.index import parse_index
from bintally.dataset.manifest import CATALOG, DATASET, SPLITS, Dataset, Shard
from bintally.errors import UsageError, WorkError
from bintally.storage.folder import Folder
from bintally.storage.lease import Lease
from bintally.storage.place import TEMPORARY_SUFFIX, ObjectRefused, Place
from bintally.storage.s3.prefix import S3Prefix
from sharding.card.card import CROISSANT, README
from sharding.shard import RECORDS, ShardRecord, record_path
from sharding.source.abid.bucket import IMAGES, METADATA
from sharding.threads import map_in_threads

__all__ = [
    "FILES",
    "PLAN",
    "Found",
    "Identity",
    "discard",
    "discard_unfinished",
    "is_index_of",
    "is_own",
    "is_record",
    "look",
    "overlap",
    "refuse_foreign_names",
    "refuse_overlap",
    "tidy",
]

PLAN = f"{RECORDS}/plan"
"""The identity of what an unfinished build is making."""
DISCARDED = f"{RECORDS}/discarded"
"""The `dataset.json` of a complete dataset that is being deleted."""
FILES = f"{RECORDS}/files"
"""The sha256 of each file that is about to be written beside the shards."""

SPLIT = "|".join(SPLITS)
BESIDE = "|".join(map(re.escape, (DATASET, CATALOG, README, CROISSANT)))
OWN_NAME = re.compile(
    rf"{BESIDE}|(?P<split>{SPLIT})/(?P=split)-\d{{6,}}\.(tar|idx)"
    rf"|{re.escape(RECORDS)}/(plan|files|discarded|({SPLIT})-\d{{6,}}\.(arrow|json))"
)

OLD_PLAN = re.compile(rb"[0-9a-f]{64}")
"""What an older version wrote there."""


@dataclass(frozen=True)
class Identity:
    """What decides the bytes of a dataset: only builds of the same may share shards."""

    source: Mapping[str, Any]
    seed: int
    options: Mapping[str, Any]
    """As `dataset.json` holds them."""
    plan: str | None
    """The plan's digest; None where only `dataset.json` is left of it."""

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def differences(self, earlier: Identity, *, of_source: bool = True) -> list[str]:
        """What this one has otherwise than an earlier one, in words."""
        words = [
            f"--{name.replace('_', '-')} {_shown(value)} (it was {_shown(was)})"
            for name, value in self.options.items()
            if value != (was := earlier.options.get(name))
        ]
        if self.seed != earlier.seed:
            words.append(f"--seed {self.seed} (it was {earlier.seed})")
        if of_source and self.source != earlier.source:
            numbers = [
                f"{identity.source.get('images')} photos and {identity.source.get('metadata')} "
                "metadata files"
                for identity in (self, earlier)
            ]
            was = "its content changed" if numbers[0] == numbers[1] else f"it was {numbers[1]}"
            words.append(f"a source of {numbers[0]} ({was})")
        if not words and None not in (self.plan, earlier.plan) and self.plan != earlier.plan:
            words.append("another version of bintally")
        return words


@dataclass
class Found:
    """What earlier builds have left at a destination: all of it is theirs."""

    sizes: Mapping[str, int]
    """Bytes by path."""
    dataset: Dataset | None = None
    """Of a complete dataset."""
    unfinished: Identity | None = None
    records: dict[str, ShardRecord] = field(default_factory=dict)
    """Of an unfinished build, by the shards' paths; what they name need not be there yet."""
    pending: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The sha256 of files that unfinished builds were about to write, one after the other."""
    cards: set[str] = field(default_factory=set)
    """The sha256 of all cards that builds have written here."""

    @property
    def identity(self) -> Identity | None:
        """Of what was made or begun here; None if there is nothing to go on with."""
        if self.dataset is None:
            return self.unfinished
        return Identity(self.dataset.source, self.dataset.seed, self.dataset.options, None)

    def has(self, shard: Shard) -> bool:
        """Whether a shard lies here with its index; one without samples is not written."""
        written = self.sizes.get(shard.path) == shard.bytes and shard.index in self.sizes
        return written or not shard.samples


def is_own(path: str) -> bool:
    """Whether a build names its files so."""
    return OWN_NAME.fullmatch(path) is not None


def is_record(path: str) -> bool:
    """Whether an unfinished build names its records so."""
    return is_own(path) and path.startswith(f"{RECORDS}/")


def overlap(a: Place, b: Place) -> bool:
    """Whether one of two places contains the other."""
    return _contains(a, b) or _contains(b, a)


def refuse_overlap(source: Place, destination: Place) -> None:
    """Raises `UsageError` if one of the two places contains the other."""
    if any(
        overlap(a, b)
        for a in _roots(source, (IMAGES, METADATA))
        for b in _roots(destination, (*SPLITS, RECORDS))
    ):
        raise UsageError(
            f"--source {source} and --output {destination}: one contains the other, and a build "
            "never writes into its source; choose another --output place"
        )


def look(destination: Place, connections: int) -> Found:
    """Finds out what lies at a destination. Raises `UsageError`, with an example, if anything is
    not proven to be a build's."""
    sizes = {entry.path: entry.size_bytes for entry in destination.entries()}
    _refuse_names(destination, sizes)
    found = Found(sizes)
    recorded: dict[str, list[Shard]] = defaultdict(list)
    # What says whose the others are comes first. One at a time: indexes are large together.
    small = sorted((p for p in sizes if not p.endswith(".tar")), key=lambda p: not _tells(p))
    try:
        for path, data in zip(
            small, map_in_threads(destination.get, small, connections), strict=True
        ):
            try:
                _read_small(found, recorded, path, data)
            except (ValueError, KeyError, TypeError, AttributeError):
                _refuse(destination, path)
    except FileNotFoundError as error:
        raise WorkError(f"{destination}: files vanish while they are read; call again") from error
    except ObjectRefused as error:
        raise UsageError(f"{error}; move it away, or choose an empty --output place") from error
    for path, size in sizes.items():
        if path.endswith(".tar") and not any(shard.bytes == size for shard in recorded[path]):
            _refuse(destination, path)
    return found


def _tells(path: str) -> bool:
    return path == DATASET or path.startswith(f"{RECORDS}/")


def _read_small(found: Found, recorded: dict[str, list[Shard]], path: str, data: bytes) -> None:
    """Takes in what a file says; raises `ValueError` and others where it is not as a build wrote
    it, or nobody's that is known."""

    def record(shard: Shard) -> None:
        recorded[shard.path].append(shard)
        recorded[shard.index].append(shard)

    if path in (DATASET, DISCARDED):
        dataset = Dataset.from_json(data)
        for shard in dataset.shards:
            record(shard)
        found.cards |= {*dataset.files.values()}
        if path == DATASET:
            found.dataset = dataset
    elif path == PLAN:
        if not OLD_PLAN.fullmatch(data):
            found.unfinished = Identity(**json.loads(data))
    elif path == FILES:
        found.pending = json.loads(data)
        found.cards |= {*chain.from_iterable(found.pending.values())}
    elif path.endswith(".json") and _tells(path):
        record(Shard(**json.loads(data)["shard"]))  # An older version's.
    elif _tells(path):
        finished = ShardRecord.from_bytes(data)
        record(finished.shard)
        found.records[finished.shard.path] = finished
    elif path.endswith(".idx"):
        if not any(is_index_of(data, shard) for shard in recorded[path]):
            raise ValueError
    elif path == CATALOG:
        known = found.identity is not None or DISCARDED in found.sizes
        if not known or not _is_catalog(data):
            raise ValueError
    else:  # A card. Anybody may have a README of their own.
        if hashlib.sha256(data).hexdigest() not in found.cards:
            raise ValueError


def refuse_foreign_names(destination: Place) -> None:
    """Raises `UsageError` if a destination is no folder, or has what no build ever names so."""
    if isinstance(destination, Folder) and destination.root.exists():
        destination.check()
    _refuse_names(destination, (entry.path for entry in destination.entries()))


def _refuse_names(destination: Place, paths: Iterable[str]) -> None:
    for path in paths:
        if not is_own(path):
            raise UsageError(
                f"{destination} holds {path}, which is no part of a dataset; "
                "choose an empty --output place"
            )


def discard(found: Found, lease: Lease) -> None:
    """Deletes what earlier builds have left. Interrupted, what is left is still proven theirs."""
    if found.dataset is not None:
        lease.put(DISCARDED, found.dataset.to_json())
        lease.delete(DATASET)

    def last(path: str) -> tuple[bool, bool]:
        return path.startswith(RECORDS), path in (PLAN, DISCARDED)

    for path in sorted(found.sizes.keys() | {DISCARDED}, key=last):
        lease.delete(path)


def discard_unfinished(found: Found, lease: Lease) -> None:
    """Deletes the shards that an unfinished build has added; its records go last, but for the
    plan."""
    complete = set() if found.dataset is None else {s.path for s in found.dataset.shards}
    for path, record in found.records.items():
        if path not in complete:
            lease.delete(path)
            lease.delete(record.shard.index)
        lease.delete(record_path(path))
    found.records.clear()


def tidy(lease: Lease) -> None:
    """Removes what only an unfinished build needs."""
    place = lease.place
    for entry in list(place.entries(RECORDS)):
        if is_own(entry.path):
            lease.delete(entry.path)
    if isinstance(place, Folder):
        for name in ("", RECORDS, *SPLITS):
            _delete_temporary_files(place.root, name)
        with suppress(OSError):  # Not there, or with something of somebody else's in it by now.
            (place.root / RECORDS).rmdir()


def _delete_temporary_files(root: Path, folder: str) -> None:
    """Removes what killed builds were writing when they were killed."""
    for path in (root / folder).glob(f"*{TEMPORARY_SUFFIX}"):
        # NAME.PID and the suffix.
        name = path.name.removesuffix(TEMPORARY_SUFFIX).rpartition(".")[0]
        if is_own(f"{folder}/{name}" if folder else name):
            path.unlink(missing_ok=True)


def _refuse(destination: Place, path: str) -> NoReturn:
    raise UsageError(
        f"{destination} holds {path}, which is not as a build wrote it, or nobody's that is known "
        "here; move it away, or choose an empty --output place"
    )


def is_index_of(data: bytes, shard: Shard) -> bool:
    """Whether bytes may be the index of a shard."""
    try:
        return len(parse_index(data)) == shard.samples
    except ValueError:
        return False


def _is_catalog(data: bytes) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = {*pq.read_schema(io.BytesIO(data)).names}
    except (OSError, pa.ArrowException):
        return False
    return {"id", "count", "split", "shard", "position", "status"} <= names


def _roots(place: Place, folders: Sequence[str]) -> list[Place]:
    """A place, and where those of its folders that are links lead."""
    if not isinstance(place, Folder):
        return [place]
    links = [place.root / name for name in folders if (place.root / name).is_symlink()]
    return [place, *map(Folder, links)]


def _contains(outer: Place, inner: Place) -> bool:
    if isinstance(outer, Folder) and isinstance(inner, Folder):
        above, real = (Path(os.path.realpath(place.root)) for place in (outer, inner))
        # By name where they are not there yet; else by what they are, for a folder may be mounted
        # twice, or written in other capitals.
        return any(
            folder == above or (above.exists() and folder.exists() and folder.samefile(above))
            for folder in (real, *real.parents)
        )
    if isinstance(outer, S3Prefix) and isinstance(inner, S3Prefix):
        below = not outer.prefix or f"{inner.prefix}/".startswith(f"{outer.prefix}/")
        return outer.bucket == inner.bucket and below
    return False


def _shown(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "not given" if value in (None, "") else str(value)
