"""Is a shard what its build wrote? A build asks before it goes on with it, and `verify` of all."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass

from bintally.dataset.index import Component, IndexedSample, format_index
from bintally.dataset.manifest import DATASET, Shard
from bintally.storage.place import Place
from bintally.terminal.progress import Progress
from sharding.distribute import Distributor
from sharding.tar import EXTENSIONS, fit_together

__all__ = ["IntegrityJob", "deviation", "find_damaged", "walk_own_tar"]


def find_damaged(place: Place, shards: Sequence[Shard], distributor: Distributor) -> list[Shard]:
    """Those of a build's shards, in their order, whose tar or index is missing or is not what was
    written. A shard without samples is not written at all, and is never damaged.

    Reads every byte. Raises `WorkError` where that fails.
    """
    jobs = [IntegrityJob(place, shard) for shard in shards if shard.samples]
    damaged = set()
    with Progress("check", len(jobs), "shards") as progress:
        for path, whole in distributor.run(jobs):
            if not whole:
                damaged.add(path)
            progress.update()
    return [shard for shard in shards if shard.path in damaged]


@dataclass(frozen=True)
class IntegrityJob:
    """A shard to read, tar and index."""

    place: Place
    shard: Shard

    def run(self) -> tuple[str, bool]:
        """The tar's path, and whether both are there, as they were written."""
        return self.shard.path, self._is_whole()

    def _is_whole(self) -> bool:
        try:
            tar, index = self.place.get(self.shard.path), self.place.get(self.shard.index)
        except FileNotFoundError:
            return False
        if deviation(tar, self.shard) is not None:
            return False
        try:
            return fit_together(tar, index) or index == format_index(walk_own_tar(tar))
        except ValueError:
            return False


def deviation(tar: bytes, shard: Shard) -> str | None:
    """How a tar differs from what `dataset.json` says of it; None if it is whole."""
    if len(tar) != shard.bytes:
        return f"has {len(tar):,} bytes, not {shard.bytes:,}"
    if hashlib.sha256(tar).hexdigest() != shard.sha256:
        return f"its sha256 is not the one in {DATASET}"
    return None


def walk_own_tar(tar: bytes) -> list[IndexedSample]:
    """The samples of a build's tar, each of the three files that it writes, in their order.

    It takes longer than the tar's sha256, and says more than `fit_together`. Raises `ValueError`
    where it is no such tar.
    """
    try:
        # What is no text in names is shown as text, for they go into messages and columns.
        with tarfile.open(
            fileobj=io.BytesIO(tar), mode="r:", encoding="utf-8", errors="backslashreplace"
        ) as opened:
            members = opened.getmembers()
    except (tarfile.TarError, OverflowError, EOFError, IndexError) as error:
        raise ValueError(str(error)) from error
    samples = []
    for start in range(0, len(members), 3):
        trio = members[start : start + 3]
        parts = [Component(m.name.partition(".")[2], m.offset_data, m.size, m.name) for m in trio]
        stems = {m.name.partition(".")[0] for m in trio}
        if tuple(c.extension for c in parts) != EXTENSIONS or len(stems) != 1:
            names = ", ".join(m.name for m in trio)
            raise ValueError(f"{names} are not the jpg, cls and json of one sample")
        samples.append(IndexedSample(stems.pop(), parts))
    return samples
