"""Placeholder until the merge."""

from __future__ import annotations

from collections.abc import Sequence

from bintally.dataset.manifest import Shard
from bintally.storage.place import Place
from sharding.distribute import Distributor


def find_damaged(place: Place, shards: Sequence[Shard], distributor: Distributor) -> list[Shard]:
    sizes = {e.path: e.size_bytes for e in place.entries()}
    return [s for s in shards if sizes.get(s.path) != s.bytes or s.index not in sizes]
