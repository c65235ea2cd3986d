"""One shard's part of a verification: its bytes are read once and compared with all that is known
of them. The unit of all parallelism."""

from __future__ import annotations

import io
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bintally.dataset.index import Component, IndexedSample, format_index, parse_index
from bintally.dataset.labels import label_component, photo_component, read_label
from bintally.dataset.manifest import CATALOG, DATASET, Dataset, Shard
from bintally.dataset.photo import BadPhoto, check_photo
from bintally.dataset.shard_index import read_shard_index
from bintally.storage.place import Place
from sharding.adoption.foreign_tar import sample_span, walk_tar
from sharding.integrity import deviation, walk_own_tar
from sharding.tar import fit_together

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["VerifiedShard", "VerifyJob"]

Row = Mapping[str, Any]
Labels = Sequence[tuple[str, str]]
"""Each sample's id, and its label as text."""


@dataclass(frozen=True)
class VerifiedShard:
    """What a job found."""

    number: int
    """The job's."""
    ids: Sequence[str]
    """Of the samples that the tar holds, in its order."""
    damage: Sequence[str]
    """A line for each."""


@dataclass(frozen=True)
class VerifyJob:
    """A shard to read, whole and by itself."""

    number: int
    """Which of the dataset's shards it is."""
    place: Place
    """The dataset's, with the indexes."""
    tars: Place
    dataset: Dataset
    """How to read a sample; its splits may be left out."""
    split: str
    shard: Shard
    rows: pa.RecordBatch | None
    """The catalog's rows of this shard: `id`, `label` (a count as text, too), `status`, `split`,
    `position` and `crc32`. None where no catalog can be read."""
    decode: bool

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.rows is not None:
            # A slice would take along all that it is a slice of.
            state["rows"] = self.rows.take([*range(len(self.rows))])
        return state

    def run(self) -> VerifiedShard:
        """Reads the shard. Raises `WorkError` where that fails."""
        rows = {} if self.rows is None else {row["id"]: row for row in self.rows.to_pylist()}
        tar, index = _get(self.tars, self.shard.path), _get(self.place, self.shard.index)
        labels: Labels = []
        if tar is None:
            damage = [f"{self.shard.path}: missing"]
        else:
            labels, damage = self._read(tar, index, rows)
        if self.rows is not None:
            damage += self._compare_rows(labels, rows)
        return VerifiedShard(self.number, [id_ for id_, _ in labels], damage)

    def _read(
        self, tar: bytes, index: bytes | None, rows: Mapping[str, Row]
    ) -> tuple[Labels, list[str]]:
        """The labels of the samples that the tar holds, and what is wrong with it and its index."""
        difference = deviation(tar, self.shard)
        if difference is None and index is not None and not self.dataset.is_adopted:
            labels = self._labels(tar, index)
            if labels is not None:
                return labels, []
        return self._examine(tar, index, difference, rows)

    def _labels(self, tar: bytes, index: bytes) -> Labels | None:
        """What a whole tar and its index hold; None where anything else is to be said of them."""
        if not fit_together(tar, index):
            return None
        rule = self.dataset.label
        try:
            found = read_shard_index(index, self.shard.samples, rule)
            labels = [str(read_label(tar[at : at + n], rule)) for at, n in found.labels.tolist()]
            if self.decode:
                for at, size in found.photos.tolist():
                    check_photo(tar[at : at + size])
        except ValueError:
            return None
        if not self._has_counts(labels):
            return None
        return [*zip(map(self._id, found.ids), labels, strict=True)]

    def _examine(
        self, tar: bytes, index_data: bytes | None, difference: str | None, rows: Mapping[str, Row]
    ) -> tuple[Labels, list[str]]:
        """As `_read`, sample by sample."""
        path, adopted = self.shard.path, self.dataset.is_adopted
        damage = []
        index, flaw = _parse(index_data)
        if difference is not None:
            damage.append(f"{path}: {difference}")
        if difference is not None or adopted:
            # In a whole tar of others, the index may still be of other samples.
            damage += [
                f"{path}: sample {id_}: its bytes are not those that were written"
                for id_, sample in ((self._id(sample.id), sample) for sample in index)
                if id_ in rows and _crc32(tar, sample) != rows[id_]["crc32"]
            ]
        samples: Sequence[IndexedSample] = []
        readable = True
        try:
            samples = _listed(tar, index) if adopted else walk_own_tar(tar)
        except ValueError as error:
            damage.append(f"{path}: cannot be read as a tar of samples: {error}")
            readable = False
        if len(samples) != self.shard.samples:
            damage.append(f"{path}: holds {len(samples)} samples, not {self.shard.samples}")

        labels = []
        for sample in samples:
            label, complaints = _judge(tar, sample, self.dataset.label, self.decode)
            id_ = self._id(sample.id)
            labels.append((id_, label))
            damage += [f"{path}: sample {id_}: {complaint}" for complaint in complaints]
        if samples and not self._has_counts([label for _, label in labels]):
            damage.append(f"{path}: its counts by class are not those in {DATASET}")
        if flaw is None and readable and index != samples:
            flaw = f"does not say what {path} holds"
        if flaw is not None:
            damage.append(f"{self.shard.index}: {flaw}")
        return labels, damage

    def _has_counts(self, labels: Sequence[str]) -> bool:
        """Whether there are as many of each class as `dataset.json` says."""
        return {c: n for c, n in self.shard.class_counts.items() if n} == Counter(labels)

    def _id(self, key: str) -> str:
        return self.dataset.sample_id(self.shard, key)

    def _compare_rows(self, labels: Labels, rows: Mapping[str, Row]) -> Iterator[str]:
        """Where the catalog and the tar disagree."""
        for position, (id_, label) in enumerate(labels):
            row = rows.get(id_)
            sample = f"{self.shard.path}: sample {id_}"
            if row is None:
                yield f"{sample}: {CATALOG} does not place it here"
            elif (row["status"], row["split"], row["position"]) != (
                "sharded",
                self.split,
                position,
            ):
                yield f"{sample}: {CATALOG} places it elsewhere"
            elif label != row["label"]:
                yield f"{sample}: {CATALOG} gives it another count"
        there = {id_ for id_, _ in labels}
        for id_ in rows:
            if id_ not in there:
                yield f"{self.shard.path}: sample {id_}: is in {CATALOG} and not in the tar"


def _get(place: Place, path: str) -> bytes | None:
    try:
        return place.get(path)
    except FileNotFoundError:
        return None


def _listed(tar: bytes, index: Sequence[IndexedSample]) -> list[IndexedSample]:
    """Those samples of an index that a tar of others holds, exactly so."""
    there = {
        found.key: found.indexed for found in walk_tar(io.BytesIO(tar)) if found.complaint is None
    }
    return [sample for sample in index if there.get(sample.id) == sample]


def _parse(index: bytes | None) -> tuple[Sequence[IndexedSample], str | None]:
    """The samples of an index, if there is one, or what is wrong with it."""
    if index is None:
        return [], "missing"
    try:
        samples = parse_index(index)
    except ValueError as error:
        return [], f"not an index: {error}"
    if index != format_index(samples):
        return [], "is not as it was written"
    return samples, None


def _judge(tar: bytes, sample: IndexedSample, rule: str, decode: bool) -> tuple[str, Sequence[str]]:
    """A sample's label as text, and what is wrong with its files."""
    complaints = []
    label = ""
    try:
        holder, photo = label_component(sample.components, rule), photo_component(sample.components)
        if holder is None or photo is None:
            return "", ["has no photo, or no label"]
        label = str(read_label(_bytes(tar, holder), rule))
    except ValueError as error:
        complaints.append(f"its label {error}")
    else:
        if decode:
            try:
                check_photo(_bytes(tar, photo))
            except BadPhoto as error:
                complaints.append(str(error))
    return label, complaints


def _crc32(tar: bytes, sample: IndexedSample) -> int:
    """Of a sample's part of a tar, from its first header to its last padding."""
    begin, end = sample_span(sample.components)
    return zlib.crc32(memoryview(tar)[begin:end])


def _bytes(tar: bytes, part: Component) -> bytes:
    return tar[part.offset : part.offset + part.size]
