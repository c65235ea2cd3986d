"""The index of a shard: DALI's `.idx`, version 1.2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

__all__ = ["Component", "IndexedSample", "format_index", "parse_index"]

INDEX_VERSION = "v1.2"


@dataclass(frozen=True)
class Component:
    """A file of a sample inside a tar."""

    extension: str
    offset: int
    """Where its data begin in the tar, in bytes: a multiple of 512."""
    size: int
    """Bytes."""
    name: str


@dataclass(frozen=True)
class IndexedSample:
    """A line of an index."""

    id: str
    components: Sequence[Component]

    def __getitem__(self, extension: str) -> Component:
        return next(c for c in self.components if c.extension == extension)


def format_index(samples: Sequence[IndexedSample]) -> bytes:
    """The text of a `.idx` file, as DALI's `wds2idx` writes it."""
    lines = [f"{INDEX_VERSION} {len(samples)}"]
    for sample in samples:
        lines.append(
            " ".join(f"{c.extension} {c.offset} {c.size} {c.name}" for c in sample.components)
        )
    return ("\n".join(lines) + "\n").encode("ascii")


def parse_index(data: bytes) -> list[IndexedSample]:
    """Reads a `.idx` file; `ValueError` where it is not one of version 1.2, or is cut short."""
    header, *lines = data.decode("ascii").split("\n")
    version, _, number = header.partition(" ")
    if version != INDEX_VERSION or not number.isdigit():
        raise ValueError(f"begins with {header[:40]!r}, not with '{INDEX_VERSION} <samples>'")
    if lines[-1:] != [""] or len(lines) - 1 != int(number):
        raise ValueError(f"announces {number} samples and holds {len(lines) - 1} whole lines")
    samples = []
    for line in lines[:-1]:
        fields = line.split(" ")
        if len(fields) % 4 or not fields[0]:
            raise ValueError(
                f"has a line that is not 'extension offset size name …': {line[:80]!r}"
            )
        components = [
            Component(extension, int(offset), int(size), name)
            for extension, offset, size, name in zip(*[iter(fields)] * 4, strict=True)
        ]
        stem = PurePosixPath(components[0].name).name.partition(".")[0]
        samples.append(IndexedSample(stem, components))
    return samples
