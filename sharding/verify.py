"""Is a dataset what its build wrote? Every byte is read; nothing that is wrong goes unnamed.

Of tars that others wrote, the samples are those of the index, each of which has to lie in the tar.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from bintally.dataset.catalog import CatalogRow, parse_catalog
from bintally.dataset.index import Component, IndexedSample, format_index, parse_index
from bintally.dataset.labels import label_component, photo_component, read_label
from bintally.dataset.manifest import (
    CATALOG,
    DATASET,
    SPLITS,
    Dataset,
    Shard,
    open_tars,
    read_dataset,
)
from bintally.dataset.photo import BadPhoto, check_photo
from bintally.storage.place import Place
from bintally.terminal.progress import Progress
from sharding.adoption.foreign_tar import sample_span, walk_tar
from sharding.destination import is_record

__all__ = ["verify"]


def verify(place: Place, *, decode: bool) -> tuple[Dataset, list[str]]:
    """Compares a dataset with its own sums; `decode` also decodes every photo.

    Returns the dataset, and a line for each damage found: none if it is whole. Raises as
    `read_dataset` does where there is no complete dataset.
    """
    dataset = read_dataset(place)
    tars = open_tars(place, dataset)
    damage = [f"{DATASET}: {complaint}" for complaint in _contradictions(dataset)]
    shards = [(name, shard) for name, split in dataset.splits.items() for shard in split.shards]
    known = {DATASET, CATALOG, *(path for _, s in shards for path in (s.path, s.index))}
    # What lies beside the tars of others is theirs.
    damage += [
        f"{entry.path}: is no part of the dataset"
        for entry in (() if dataset.is_adopted and tars is place else place.entries())
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
    verify_shard = partial(_verify_shard, place, tars, dataset, decode)
    with Progress("verify", sum(s.samples for _, s in shards), "samples") as progress:
        for name, shard in shards:
            own = listed.pop(shard.path, {})
            samples, found = verify_shard(shard, own)
            damage += found
            seen.update(id_ for id_, _ in samples)
            if rows is not None:
                damage += _compare_rows(name, shard, samples, own)
            progress.update(shard.samples)
    damage += [f"{CATALOG}: names a shard {path} that {DATASET} does not" for path in listed]
    damage += [f"sample {id_}: is in the dataset {n} times" for id_, n in seen.items() if n > 1]
    return dataset, damage


def _verify_shard(
    place: Place,
    tars: Place,
    dataset: Dataset,
    decode: bool,
    shard: Shard,
    rows: Mapping[str, CatalogRow],
) -> tuple[Sequence[tuple[str, str]], list[str]]:
    """The id and label of each sample that a shard's tar holds, and what is wrong with the tar and
    its index."""
    damage = []
    try:
        data = tars.get(shard.path)
    except FileNotFoundError:
        return [], [f"{shard.path}: missing"]
    index, complaint = _read_index(place, shard)
    whole = len(data) == shard.bytes and hashlib.sha256(data).hexdigest() == shard.sha256
    if not whole:
        what = "its sha256 is not the one in dataset.json"
        if len(data) != shard.bytes:
            what = f"has {len(data):,} bytes, not {shard.bytes:,}"
        damage.append(f"{shard.path}: {what}")
    if not whole or dataset.is_adopted:
        # In a whole tar of others, the index may still be of other samples.
        named = ((dataset.sample_id(shard, sample.id), sample) for sample in index)
        damage += [
            f"{shard.path}: sample {id_}: its bytes are not those that were written"
            for id_, sample in named
            if id_ in rows and _crc32(data, sample) != rows[id_].crc32
        ]

    samples: list[IndexedSample] = []
    readable = True
    try:
        samples = _listed(data, index) if dataset.is_adopted else list(_walk(data))
    except (tarfile.TarError, ValueError) as error:
        damage.append(f"{shard.path}: cannot be read as a tar of samples: {error}")
        readable = False
    if len(samples) != shard.samples:
        damage.append(f"{shard.path}: holds {len(samples)} samples, not {shard.samples}")
    labels = []
    for sample in samples:
        id_ = dataset.sample_id(shard, sample.id)
        label, complaints = _judge(data, sample, dataset.label, decode)
        labels.append((id_, label))
        damage += [f"{shard.path}: sample {id_}: {complaint}" for complaint in complaints]
    counts = Counter(label for _, label in labels)
    if samples and {c: n for c, n in shard.class_counts.items() if n} != counts:
        damage.append(f"{shard.path}: its counts by class are not those in {DATASET}")

    if complaint is not None:
        damage.append(f"{shard.index}: {complaint}")
    elif readable and index != samples:
        damage.append(f"{shard.index}: does not say what {shard.path} holds")
    return labels, damage


def _listed(data: bytes, index: Sequence[IndexedSample]) -> list[IndexedSample]:
    """Those samples of an index that a tar of others holds, exactly so."""
    there = {
        found.key: found.indexed for found in walk_tar(io.BytesIO(data)) if found.complaint is None
    }
    return [sample for sample in index if there.get(sample.id) == sample]


def _judge(
    data: bytes, sample: IndexedSample, rule: str, decode: bool
) -> tuple[str, Sequence[str]]:
    """A sample's label as text, and what is wrong with its files."""
    complaints = []
    label = ""
    try:
        holder, photo = label_component(sample.components, rule), photo_component(sample.components)
        if holder is None or photo is None:
            return "", ["has no photo, or no label"]
        label = str(read_label(_bytes(data, holder), rule))
    except ValueError as error:
        complaints.append(f"its label {error}")
    else:
        if decode:
            try:
                check_photo(_bytes(data, photo))
            except BadPhoto as error:
                complaints.append(str(error))
    return label, complaints


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
    begin, end = sample_span(sample.components)
    return zlib.crc32(data[begin:end])


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


def _bytes(data: bytes, part: Component) -> bytes:
    return data[part.offset : part.offset + part.size]


def _compare_rows(
    split: str, shard: Shard, samples: Sequence[tuple[str, str]], rows: Mapping[str, CatalogRow]
) -> Iterator[str]:
    """Where the catalog and a shard's tar disagree."""
    for position, (id_, label) in enumerate(samples):
        row = rows.get(id_)
        if row is None:
            yield f"{shard.path}: sample {id_}: {CATALOG} does not place it here"
        elif (row.status, row.split, row.position) != ("sharded", split, position):
            yield f"{shard.path}: sample {id_}: {CATALOG} places it elsewhere"
        elif label != (str(row.count) if row.label is None else row.label):
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
