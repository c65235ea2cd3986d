"""The index of a shard: DALI's `.idx`, version 1.2."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Component", "IndexedSample", "format_index", "parse_index", "split_name"]

INDEX_VERSION = "v1.2"
NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
"""A sample's key, folders included, ends at the first dot of the file's own name."""


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
    """Its key: unique in its tar."""
    components: Sequence[Component]

    def __getitem__(self, extension: str) -> Component:
        return next(c for c in self.components if c.extension == extension)


def split_name(name: str) -> tuple[str, str] | None:
    """The key of the sample that a tar's file belongs to, and the file's extension, as WebDataset
    has them; None for a name that makes it none of a sample's (`README`, `.hidden.jpg`)."""
    match = NAME.fullmatch(name.removeprefix("./"))
    return None if match is None else (match[1], match[2])


def format_index(samples: Sequence[IndexedSample]) -> bytes:
    """The text of a `.idx` file, as DALI's `wds2idx` writes it. No name may hold white space."""
    lines = [f"{INDEX_VERSION} {len(samples)}"]
    for sample in samples:
        lines.append(
            " ".join(f"{c.extension} {c.offset} {c.size} {c.name}" for c in sample.components)
        )
    return ("\n".join(lines) + "\n").encode()


def parse_index(data: bytes) -> list[IndexedSample]:
    """Reads a `.idx` file; `ValueError` where it is not one of version 1.2, or is cut short."""
    header, *lines = data.decode().split("\n")
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
        key, _ = split_name(components[0].name) or (components[0].name, "")
        samples.append(IndexedSample(key, components))
    return samples
