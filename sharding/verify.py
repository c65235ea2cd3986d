"""Is a dataset what its build wrote? Every byte is read; nothing that is wrong goes unnamed."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from tarfile import BLOCKSIZE

from bintally.dataset.catalog import CatalogRow, parse_catalog
from bintally.dataset.index import Component, IndexedSample, format_index, parse_index
from bintally.dataset.manifest import CATALOG, DATASET, SPLITS, Dataset, Shard, read_dataset
from bintally.dataset.photo import BadPhoto, check_photo
from bintally.storage.place import Place
from bintally.terminal.progress import Progress
from sharding.destination import is_record

__all__ = ["verify"]


def verify(place: Place, *, decode: bool) -> tuple[Dataset, list[str]]:
    """Compares a dataset with its own sums; `decode` also decodes every photo.

    Returns the dataset, and a line for each damage found: none if it is whole. Raises as
    `read_dataset` does where there is no complete dataset.
    """
    dataset = read_dataset(place)
    damage = [f"{DATASET}: {complaint}" for complaint in _contradictions(dataset)]
    shards = [(name, shard) for name, split in dataset.splits.items() for shard in split.shards]
    known = {DATASET, CATALOG, *(path for _, s in shards for path in (s.path, s.index))}
    damage += [
        f"{entry.path}: is no part of the dataset"
        for entry in place.entries()
        # What a build that was killed at its very end had no time to remove is no damage.
        if entry.path not in known and not is_record(entry.path)
    ]
    rows: list[CatalogRow] | None = None
    try:
        table = place.get(CATALOG)
        if dataset.files.get(CATALOG) not in (None, hashlib.sha256(table).hexdigest()):
            damage.append(f"{CATALOG}: its sha256 is not the one in {DATASET}")
        rows = parse_catalog(table)
    except FileNotFoundError:
        damage.append(f"{CATALOG}: missing")
    except (OSError, ValueError, TypeError) as error:
        damage.append(f"{CATALOG}: not readable: {str(error).splitlines()[0]}")

    listed: dict[str, dict[str, CatalogRow]] = defaultdict(dict)
    for row in rows or []:
        if row.shard is not None:
            listed[row.shard][row.id] = row
    seen: Counter[str] = Counter()
    with Progress("verify", sum(s.samples for _, s in shards), "samples") as progress:
        for name, shard in shards:
            own = listed.pop(shard.path, {})
            samples, found = _verify_shard(place, shard, own, decode)
            damage += found
            seen.update(id_ for id_, _ in samples)
            if rows is not None:
                damage += _compare_rows(name, shard, samples, own)
            progress.update(shard.samples)
    damage += [f"{CATALOG}: names a shard {path} that {DATASET} does not" for path in listed]
    damage += [f"sample {id_}: is in the dataset {n} times" for id_, n in seen.items() if n > 1]
    return dataset, damage


def _verify_shard(
    place: Place, shard: Shard, rows: Mapping[str, CatalogRow], decode: bool
) -> tuple[Sequence[tuple[str, bytes]], list[str]]:
    """The id and `.cls` of each sample that a shard's tar holds, and what is wrong with the tar and
    its index."""
    damage = []
    try:
        data = place.get(shard.path)
    except FileNotFoundError:
        return [], [f"{shard.path}: missing"]
    index, complaint = _read_index(place, shard)
    if len(data) != shard.bytes or hashlib.sha256(data).hexdigest() != shard.sha256:
        what = "its sha256 is not the one in dataset.json"
        if len(data) != shard.bytes:
            what = f"has {len(data):,} bytes, not {shard.bytes:,}"
        damage.append(f"{shard.path}: {what}")
        damage += [
            f"{shard.path}: sample {sample.id}: its bytes are not those that were written"
            for sample in index
            if sample.id in rows and _crc32(data, sample) != rows[sample.id].crc32
        ]

    samples: list[IndexedSample] = []
    try:
        samples = list(_walk(data))
    except (tarfile.TarError, ValueError) as error:
        damage.append(f"{shard.path}: cannot be read as a tar of samples: {error}")
    if len(samples) != shard.samples:
        damage.append(f"{shard.path}: holds {len(samples)} samples, not {shard.samples}")
    counts = Counter(_bytes(data, s, "cls") for s in samples)
    if samples and {c.encode(): n for c, n in shard.class_counts.items() if n} != counts:
        damage.append(f"{shard.path}: its counts by class are not those in {DATASET}")
    if decode:
        for sample in samples:
            try:
                check_photo(_bytes(data, sample, "jpg"))
            except BadPhoto as error:
                damage.append(f"{shard.path}: sample {sample.id}: {error}")

    if complaint is not None:
        damage.append(f"{shard.index}: {complaint}")
    elif samples and index != samples:
        damage.append(f"{shard.index}: does not say what {shard.path} holds")
    return [(sample.id, _bytes(data, sample, "cls")) for sample in samples], damage


def _read_index(place: Place, shard: Shard) -> tuple[Sequence[IndexedSample], str | None]:
    """A shard's index, or what is wrong with it."""
    try:
        data = place.get(shard.index)
        samples = parse_index(data)
    except FileNotFoundError:
        return [], "missing"
    except ValueError as error:
        return [], f"not an index: {error}"
    if data != format_index(samples):
        return [], "is not as it was written"
    return samples, None


def _crc32(data: bytes, sample: IndexedSample) -> int:
    """Of a sample's part of a tar, from its first header to its last padding."""
    first, last = sample.components[0], sample.components[-1]
    end = last.offset + last.size
    return zlib.crc32(data[first.offset - BLOCKSIZE : end + -end % BLOCKSIZE])


def _walk(data: bytes) -> Iterator[IndexedSample]:
    """The samples of a tar, each of the three files that a build writes, in their order."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        members = tar.getmembers()
    for start in range(0, len(members), 3):
        trio = members[start : start + 3]
        parts = [Component(m.name.partition(".")[2], m.offset_data, m.size, m.name) for m in trio]
        stems = {m.name.partition(".")[0] for m in trio}
        if [c.extension for c in parts] != ["jpg", "cls", "json"] or len(stems) != 1:
            names = ", ".join(m.name for m in trio)
            raise ValueError(f"{names} are not the jpg, cls and json of one sample")
        yield IndexedSample(stems.pop(), parts)


def _bytes(data: bytes, sample: IndexedSample, extension: str) -> bytes:
    part = sample[extension]
    return data[part.offset : part.offset + part.size]


def _compare_rows(
    split: str, shard: Shard, samples: Sequence[tuple[str, bytes]], rows: Mapping[str, CatalogRow]
) -> Iterator[str]:
    """Where the catalog and a shard's tar disagree."""
    for position, (id_, count) in enumerate(samples):
        row = rows.get(id_)
        if row is None:
            yield f"{shard.path}: sample {id_}: {CATALOG} does not place it here"
        elif (row.status, row.split, row.position) != ("sharded", split, position):
            yield f"{shard.path}: sample {id_}: {CATALOG} places it elsewhere"
        elif str(row.count).encode() != count:
            yield f"{shard.path}: sample {id_}: {CATALOG} gives it another count"
    for id_ in rows.keys() - {id_ for id_, _ in samples}:
        yield f"{shard.path}: sample {id_}: is in {CATALOG} and not in the tar"


def _contradictions(dataset: Dataset) -> Iterator[str]:
    """Where `dataset.json` disagrees with itself."""
    least, most = dataset.options.get("min_count"), dataset.options.get("max_count")
    if most is not None and [*dataset.classes] != [*range(least or 0, most + 1)]:
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
