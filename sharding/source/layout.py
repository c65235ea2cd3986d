"""Which layout a source has, and so how its photos' labels are found."""

from __future__ import annotations

from bintally.storage.place import Place
from sharding.distribute import Distributor
from sharding.source.abid import read_abid
from sharding.source.rows import SourceRows

__all__ = ["read_source"]


def read_source(source: Place, distributor: Distributor, connections: int) -> SourceRows:
    """What a source holds."""
    return read_abid(source, distributor, connections)
