"""One tar's part of an adoption: its bytes are read once, its samples judged. The unit of all
parallelism."""

from __future__ import annotations

import hashlib
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from bintally.dataset.index import Component, IndexedSample, format_index
from bintally.dataset.jpeg import orientation
from bintally.dataset.labels import label_component, photo_component, read_label
from bintally.dataset.manifest import SPLIT_NAMES
from bintally.dataset.photo import CMYK, Header, check_photo
from bintally.errors import WorkError
from bintally.storage.folder import Folder
from bintally.storage.place import Entry, Place
from bintally.storage.s3.prefix import S3Prefix
from sharding.adoption.foreign_tar import BadTar, sample_span, walk_tar
from sharding.shard import MAX_BYTES

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["AdoptJob", "AdoptedTar", "index_path", "judge_sample"]

PIECE = 2**20


@dataclass(frozen=True)
class AdoptedTar:
    """What a tar holds."""

    path: str
    split: str
    size_bytes: int
    sha256: str
    samples: pa.Table
    """One row per sample, in its order: its `key`, and what the catalog is to say of it but for its
    id. `label` is there of all that are used, and of those whose label is a count `count` as well.
    """
    class_counts: Mapping[str, int]
    """Of those that are used, by label."""
    index: bytes
    """Of those that are used."""


@dataclass(frozen=True)
class AdoptJob:
    """A tar to read, whole and by itself."""

    tars: Place
    entry: Entry
    label: str
    """See `read_label`."""

    def run(self) -> AdoptedTar:
        """Reads the tar. Raises `WorkError`, with the byte, where it is cut short or damaged."""
        with self._open() as file:
            try:
                return self._read(file)
            except BadTar as error:
                raise WorkError(
                    f"{self.tars}/{self.entry.path}: {error}; fetch or write it again, or move it "
                    "away"
                ) from error
            except OSError as error:
                raise WorkError(
                    f"{self.tars}/{self.entry.path}: cannot be read: {error.strerror}"
                ) from error

    def _read(self, file: BinaryIO) -> AdoptedTar:
        import pyarrow as pa

        path, split = self.entry.path, _split_of(self.entry.path)
        sha256 = hashlib.sha256()
        at = 0
        rows: list[dict[str, Any]] = []
        lines: list[IndexedSample] = []
        for found in walk_tar(file):
            if found.complaint is not None:
                rows.append(_put_aside(path, found.key, found.complaint))
                continue
            begin, end = sample_span(found.components)
            file.seek(at)
            before, data = file.read(begin - at), file.read(end - begin)
            sha256.update(before)
            sha256.update(data)
            at = end
            try:
                described = _describe_sample(found.components, self.label, begin, data)
            except ValueError as error:
                rows.append(_put_aside(path, found.key, str(error)))
                continue
            place = {"split": split, "shard": path, "position": len(lines), "status": "sharded"}
            rows.append({"key": found.key, **place, **described})
            lines.append(found.indexed)
        file.seek(at)
        while piece := file.read(PIECE):
            sha256.update(piece)
            at += len(piece)
        counts = Counter(row["label"] for row in rows if "label" in row)
        samples = pa.Table.from_pylist(rows, _schema())
        return AdoptedTar(path, split, at, sha256.hexdigest(), samples, counts, format_index(lines))

    def _open(self) -> BinaryIO:
        """The tar as a file: a folder's own, or a copy in a temporary one, which is gone when it is
        closed."""
        if isinstance(self.tars, Folder):
            try:
                return (self.tars.root / self.entry.path).open("rb")
            except OSError as error:
                raise WorkError(
                    f"{self.tars}/{self.entry.path}: cannot be read: {error.strerror}"
                ) from error
        assert isinstance(self.tars, S3Prefix)
        file = tempfile.TemporaryFile(prefix="bintally-")  # noqa: SIM115
        try:
            self.tars.download(self.entry.path, file)
        except FileNotFoundError as error:
            raise WorkError(f"{self.tars}/{self.entry.path}: vanished; call again") from error
        return file


def _put_aside(path: str, key: str, complaint: str) -> dict[str, Any]:
    return {"key": key, "status": "quarantined", "reason": f"{path}: {complaint}"}


def _describe_sample(
    components: Sequence[Component], rule: str, begin: int, data: bytes
) -> dict[str, Any]:
    """What the catalog says of the photo and the label of a sample, whose bytes begin at `begin` of
    the tar. Raises `ValueError` as `judge_sample` does."""

    def part(component: Component) -> bytes:
        at = component.offset - begin
        return data[at : at + component.size]

    photo, header, label = judge_sample(components, part, rule)
    turned = orientation(part(photo))
    return {
        "count": label if isinstance(label, int) else None,
        "label": str(label),
        "bytes": photo.size,
        "width": header.width,
        "height": header.height,
        "reason": None if turned == 1 else f"EXIF orientation {turned}, read as it is stored",
        "crc32": zlib.crc32(data),
    }


def judge_sample(
    components: Sequence[Component], part: Callable[[Component], bytes], rule: str
) -> tuple[Component, Header, int | str]:
    """A sample's photo, what that says of itself, and the label; `part` reads a file of it.

    Raises `ValueError` with the reason why it is none to train on. The photo is decoded, as `build`
    does it; what a build would have to encode again is no use here, where nothing is written anew.
    """
    there = ", ".join(component.extension for component in components)
    photo, holder = photo_component(components), label_component(components, rule)
    if photo is None:
        raise ValueError(f"has no .jpg or .jpeg ({there} is all it has)")
    if holder is None:
        raise ValueError(f"has no .{rule.partition(':')[0]} with its label ({there} is all it has)")
    try:
        label = read_label(part(holder), rule)
    except ValueError as error:
        raise ValueError(f"its .{holder.extension} {error}") from error
    if photo.size > MAX_BYTES:
        raise ValueError(f"photo has {photo.size:,} bytes, more than {MAX_BYTES:,}")
    header = check_photo(part(photo))
    if header.colorspace in CMYK:
        raise ValueError(f"photo is {header.colorspace}, which decoders show differently")
    if header.rarity is not None:
        raise ValueError(f"photo has {header.rarity}, which not every decoder knows")
    return photo, header, label


def index_path(tar: str) -> str:
    """Where the index of a tar lies, in the place of the dataset."""
    return f"{tar.removesuffix('.tar')}.idx"


def _split_of(path: str) -> str:
    """The split of a tar, by the first of its folders that is called as one."""
    folders = PurePosixPath(path).parent.parts
    return next((SPLIT_NAMES[folder] for folder in folders if folder in SPLIT_NAMES), "train")


def _schema() -> pa.Schema:
    import pyarrow as pa

    names = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            ("key", pa.string()),
            ("count", pa.int32()),
            ("label", pa.string()),
            ("split", names),
            ("shard", names),
            ("position", pa.int32()),
            ("bytes", pa.int64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("status", names),
            ("reason", pa.string()),
            ("crc32", pa.uint32()),
        ]
    )
