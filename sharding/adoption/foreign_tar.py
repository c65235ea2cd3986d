"""The samples of a tar that somebody else wrote, and where each of their files lies in it.

Files that follow each other and have one key are a sample, as in WebDataset. Every file of a tar is
part of a sample, good or put aside with a reason, or is none of a sample's, which is said as well.
A tar that is cut short or damaged has no samples at all: what it lost, nobody knows.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from bintally.dataset.index import Component, IndexedSample, split_name
from bintally.dataset.jpeg import what_is

__all__ = ["BadTar", "TarSample", "sample_span", "walk_tar"]

BLOCK = tarfile.BLOCKSIZE
PIECE = 2**20
CUT = ("empty file", "empty header", "truncated header", "unexpected end of data")
"""What tarfile says of a tar that ends too soon."""


class BadTar(ValueError):
    """Why a tar cannot be read, and from which byte on."""


@dataclass
class TarSample:
    """Files of a tar that follow each other and have one key."""

    key: str
    components: list[Component] = field(default_factory=list)
    complaint: str | None = None
    """Why they are no sample that an index can hold; None if they may be one."""

    @property
    def indexed(self) -> IndexedSample:
        """Its line of an index."""
        return IndexedSample(self.key, self.components)


def walk_tar(file: BinaryIO) -> Iterator[TarSample]:
    """The samples of an open tar, in its order; a key that comes again is complained of.

    Raises `BadTar` where it is no whole tar, in the end at the latest.
    """
    known: set[str] = set()
    sample: TarSample | None = None
    current = ""
    for member in _members(file):
        key, extension = split_name(member.name) or (member.name, "")
        if sample is None or key != current or not extension:
            if sample is not None:
                yield sample
            sample, current = TarSample(_shown(key)), key
            if not extension:
                sample.complaint = "its name is not KEY.EXTENSION, as of a sample's file"
            elif key in known:
                sample.complaint = "its key comes earlier in the tar"
            known.add(key)
        sample.complaint = sample.complaint or _complaint(member, sample, extension)
        sample.components.append(Component(extension, member.offset_data, member.size, member.name))
    if sample is not None:
        yield sample


def _complaint(member: tarfile.TarInfo, sample: TarSample, extension: str) -> str | None:
    """Why an index cannot hold a file."""
    if not member.isreg():
        kind = "a link" if member.islnk() or member.issym() else "no plain file"
        return f"its .{_shown(extension)} is {kind}"
    if member.issparse():
        return f"its .{_shown(extension)} is stored sparse, and not in one piece"
    try:
        member.name.encode()
    except UnicodeEncodeError:
        return "its name is no UTF-8 text"
    # An index's fields are divided by spaces, and its lines by line feeds.
    if any(map(str.isspace, member.name)):
        return "its name holds white space, which an index cannot"
    if any(c.extension.lower() == extension.lower() for c in sample.components):
        return f"it has two files .{extension.lower()}"
    return None


def _shown(name: str) -> str:
    """A name as a text that any file can hold."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The members of a tar that are no folders, up to its end, which has to be one."""
    size = file.seek(0, 2)
    file.seek(0)
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                last = member.offset_data + member.size
                if member.size < 0 or member.offset_data < end:
                    raise BadTar(f"its header at byte {member.offset:,} has an impossible size")
                if member.isreg() and not member.issparse() and last > size:
                    raise BadTar(
                        f"cut short at byte {size:,}, in {_shown(member.name)}, which would end at "
                        f"{last:,}"
                    )
                end = tar.offset
                # It would keep all of them.
                tar.members = []  # type: ignore[attr-defined]
                if not member.isdir():
                    yield member
    except BadTar:
        raise
    except (tarfile.TarError, ValueError, OverflowError, EOFError, IndexError) as error:
        file.seek(0)
        first = file.read(16)
        if end == 0 and first.startswith(b"\x1f\x8b"):
            raise BadTar(f"{what_is(first)}: no index can point into it; unpack it") from error
        if str(error) in CUT:
            raise BadTar(f"cut short at byte {size:,} ({error})") from error
        raise BadTar(f"no tar from byte {end:,} on ({error})") from error
    _check_end(file, end, size)


def _check_end(file: BinaryIO, end: int, size: int) -> None:
    """Raises `BadTar` unless a tar ends as tars do: with an empty block, and nothing after it.

    Programs that read tars stop without a word where they find no header, however much follows.
    """
    if end + BLOCK > size:
        raise BadTar(f"cut short at byte {size:,}: tar's end mark is missing")
    file.seek(end)
    at = end
    while piece := file.read(PIECE):
        if piece.count(0) != len(piece):
            at += len(piece) - len(piece.lstrip(b"\0"))
            first = "no header" if at < end + BLOCK else "something after the tar's end"
            raise BadTar(f"damaged at byte {at:,}: {first} there")
        at += len(piece)


def sample_span(components: Sequence[Component]) -> tuple[int, int]:
    """Where a sample begins in its tar, with the last block of its first header, and ends, with its
    last padding."""
    first, last = components[0], components[-1]
    end = last.offset + last.size
    return first.offset - BLOCK, end + -end % BLOCK
