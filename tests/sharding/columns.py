"""Columns for the tests of planning, from Python's values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from bintally.dataset.manifest import SPLITS
from sharding.planning.groups import neighbour_groups
from sharding.planning.plan import Plan
from sharding.planning.selection import sample_groups
from sharding.planning.split import assign_groups, ranks, shuffled
from sharding.source.rows import SourceRows, source_schema

Counts = Mapping[str, int]
Groups = Mapping[str, str]


class NoJson:
    """For plans of which no shard is made."""

    def take(self, rows: Any) -> Any:
        raise NotImplementedError


def source_rows(rows: Sequence[Mapping[str, Any]]) -> SourceRows:
    """A source of such rows, each at least an id and a count."""
    whole = [{"status": "sharded", "skus": [], **row} for row in rows]
    table = pa.Table.from_pylist(sorted(whole, key=lambda row: row["id"]), source_schema())
    return SourceRows(table, NoJson(), {})


def plan_rows(plan: Plan) -> list[dict[str, Any]]:
    """The rows of a plan's table."""
    rows: list[dict[str, Any]] = plan.table.to_pylist()
    return rows


def shuffle(names: Sequence[str], seed: int, purpose: str) -> list[str]:
    """Names in the order in which they are drawn."""
    return [names[place] for place in shuffled(pa.array(names, pa.string()), seed, purpose)]


def groups_of(products: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The group of every id, named by its smallest member."""
    ids = sorted(products)
    lists = pa.array([products[id_] for id_ in ids], pa.list_(pa.string()))
    places = neighbour_groups(pa.array(ids, pa.string()), lists)
    return {id_: ids[place] for id_, place in zip(ids, places, strict=True)}


def _columns(counts: Counts, groups: Groups) -> tuple[list[str], Any, Any, pa.Array]:
    ids = sorted(counts)
    names = sorted({groups[id_] for id_ in ids})
    places = {name: place for place, name in enumerate(names)}
    return (
        ids,
        np.array([counts[id_] for id_ in ids]),
        np.array([places[groups[id_]] for id_ in ids]),
        pa.array(names, pa.string()),
    )


def splits_of(counts: Counts, groups: Groups, ratios: Sequence[float], seed: int) -> dict[str, str]:
    """The split of every id."""
    ids, classes, places, names = _columns(counts, groups)
    parts = assign_groups(classes, places, ranks(names, seed, "split"), ratios)
    return {id_: SPLITS[part] for id_, part in zip(ids, parts, strict=True)}


def sample_of(counts: Counts, groups: Groups, wanted: int, seed: int) -> set[str]:
    """The ids that a limit takes."""
    ids, classes, places, names = _columns(counts, groups)
    taken = sample_groups(classes, places, names, wanted, seed)
    return {id_ for id_, is_taken in zip(ids, taken, strict=True) if is_taken}
