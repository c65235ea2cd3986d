"""One tar's part of an adoption: its bytes are read once, its samples judged. The unit of all
parallelism."""

from __future__ import annotations

import hashlib
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from bintally.dataset.index import Component, format_index
from bintally.dataset.jpeg import orientation
from bintally.dataset.labels import label_component, photo_component, read_label
from bintally.dataset.photo import CMYK, Header, check_photo
from bintally.errors import WorkError
from bintally.storage.folder import Folder
from bintally.storage.place import Entry, Place
from bintally.storage.s3.prefix import S3Prefix
from sharding.adoption.foreign_tar import BadTar, TarSample, sample_span, walk_tar
from sharding.shard import MAX_BYTES

__all__ = ["AdoptJob", "AdoptedSample", "AdoptedTar", "judge_sample"]

PIECE = 2**20


@dataclass(frozen=True, slots=True)
class AdoptedSample:
    """A sample of a tar, and what the catalog is to say of it."""

    key: str
    complaint: str | None
    """Why it is not used; None if it is."""
    label: int | str = ""
    size_bytes: int = 0
    """Of its photo."""
    width: int = 0
    height: int = 0
    crc32: int = 0
    note: str | None = None


@dataclass(frozen=True)
class AdoptedTar:
    """What a tar holds."""

    path: str
    size_bytes: int
    sha256: str
    samples: Sequence[AdoptedSample]
    """In its order."""
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
        sha256 = hashlib.sha256()
        at = 0
        samples, lines = [], []
        for found in walk_tar(file):
            if found.complaint is not None:
                samples.append(AdoptedSample(found.key, found.complaint))
                continue
            begin, end = sample_span(found.components)
            file.seek(at)
            before, data = file.read(begin - at), file.read(end - begin)
            sha256.update(before)
            sha256.update(data)
            at = end
            sample = _adopted(found, self.label, begin, data)
            samples.append(sample)
            if sample.complaint is None:
                lines.append(found.indexed)
        file.seek(at)
        while piece := file.read(PIECE):
            sha256.update(piece)
            at += len(piece)
        return AdoptedTar(self.entry.path, at, sha256.hexdigest(), samples, format_index(lines))

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


def _adopted(found: TarSample, rule: str, begin: int, data: bytes) -> AdoptedSample:
    """A sample whose bytes begin at `begin` of the tar."""

    def part(component: Component) -> bytes:
        at = component.offset - begin
        return data[at : at + component.size]

    try:
        photo, header, label = judge_sample(found.components, part, rule)
    except ValueError as error:
        return AdoptedSample(found.key, str(error))
    note = None
    if (turned := orientation(part(photo))) != 1:
        note = f"EXIF orientation {turned}, read as it is stored"
    return AdoptedSample(
        found.key,
        None,
        label,
        photo.size,
        header.width,
        header.height,
        zlib.crc32(data),
        note,
    )


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
