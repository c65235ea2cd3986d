"""A source that grows moves no photo, and lets no near-copy across splits."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from bintally.dataset.catalog import encode_catalog, read_catalog
from sharding.planning.growth import BETWEEN
from sharding.planning.options import Options
from sharding.planning.plan import Plan, make_plan
from tests.sharding.columns import plan_rows, source_rows

Rows = list[dict[str, Any]]


def catalog_of(plan: Plan) -> pa.Table:
    """The catalog of a dataset in which all of a plan's photos were written."""
    shards: list[str | None] = [None] * len(plan.table)
    if "shard" in plan.table.column_names:
        shards = plan.table["shard"].to_pylist()
    for shard in plan.shards:
        for row in shard.rows:
            shards[row] = shard.path
    table = plan.table.drop_columns([c for c in ("shard",) if c in plan.table.column_names])
    return read_catalog(encode_catalog(table.append_column("shard", pa.array(shards, pa.string()))))


def splits(rows: Rows) -> dict[str, str]:
    return {row["id"]: row["split"] for row in rows if row["split"] is not None}


photos = st.dictionaries(
    st.integers(1, 90).map("{:05d}".format),
    st.tuples(st.integers(0, 7), st.lists(st.sampled_from("ABCD"), unique=True, max_size=3)),
    min_size=4,
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(photos, st.data(), st.sampled_from([Options(), Options(seed=3), Options(group="none")]))
def test_no_earlier_photo_moves_and_no_near_copy_crosses(
    bucket: dict[str, tuple[int, list[str]]], data: st.DataObject, options: Options
) -> None:
    rows = [{"id": i, "count": count, "skus": skus} for i, (count, skus) in bucket.items()]
    rows[0]["count"] = 1  # One at least that the options choose.
    there = 1 + data.draw(st.integers(0, len(rows) - 1))
    earlier = catalog_of(make_plan(source_rows(rows[:there]), options))
    before = splits(earlier.to_pylist())
    # Some of the earlier ones may be gone from the source by now.
    gone = data.draw(st.integers(0, max(0, there - 1)))
    plan = make_plan(source_rows(rows[gone:]), options, earlier)
    grown = plan_rows(plan)
    after = splits(grown)
    assert before.items() <= after.items()
    new = {grown[row]["id"] for shard in plan.shards for row in shard.rows}
    assert new == after.keys() - before.keys()
    assert {row["id"] for row in grown} >= before.keys() | {row["id"] for row in rows[gone:]}
    if options.group == "neighbours":
        of_group = defaultdict(set)
        for row in grown:
            if row["split"] is not None:
                of_group[row["group"]].add((row["split"], row["id"] in new))
        # Photos that were there may turn out to be alike; a new one is never between them.
        for found in of_group.values():
            assert len({split for split, _ in found}) == 1 or not any(is_new for _, is_new in found)
    paths = {shard.path for shard in plan.shards}
    assert not paths & {*earlier["shard"].cast(pa.string()).to_pylist()}, "shards that are there"
    again = make_plan(source_rows(rows[gone:][::-1]), options, earlier)
    assert again.digest == plan.digest


def test_near_copies_follow_an_evaluation_photo_and_what_is_between_two_splits_is_set_aside() -> (
    None
):
    first = [
        {"id": f"{number:05d}", "count": number % 6, "skus": [f"P{number}"]}
        for number in range(0, 2000, 10)
    ]
    earlier = catalog_of(make_plan(source_rows(first), Options()))
    before = splits(earlier.to_pylist())
    test = next(id_ for id_, split in before.items() if split == "test")
    near = f"{int(test) + 1:05d}"
    other = next(i for i, split in before.items() if split == "train")
    apart = {"id": f"{int(other) + 2:05d}", "count": 1, "skus": [f"P{int(other)}", "Q"]}
    # Two photos that were not alike, until one came that is like both.
    pair = [{"id": "90000", "count": 2, "skus": ["X"]}, {"id": "90002", "count": 2, "skus": ["Y"]}]
    new = [{"id": near, "count": 3, "skus": [f"P{int(test)}"]}, apart]
    plan = make_plan(source_rows([*first, *new, *pair]), Options(), earlier)
    after = splits(plan_rows(plan))
    assert after[near] == "test"
    assert after[f"{int(other) + 2:05d}"] == "train"

    for seed in range(99):
        plan = make_plan(source_rows([*first, *pair]), Options(seed=seed))
        placed = splits(plan_rows(plan))
        if placed["90000"] != placed["90002"]:
            break
    between = {"id": "90001", "count": 2, "skus": ["X", "Y"]}
    source = source_rows([*first, *pair, between])
    grown = make_plan(source, Options(seed=seed), catalog_of(plan))
    row = next(row for row in plan_rows(grown) if row["id"] == "90001")
    assert (row["status"], row["reason"], row["split"]) == ("excluded", BETWEEN, None)


def test_what_a_limit_left_out_stays_out_and_shares_are_kept() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"{3 * n:05d}", "count": int(rng.integers(0, 6)), "skus": [f"P{n}"]}
        for n in range(3000)
    ]
    first = make_plan(source_rows(rows[:2000]), Options(fraction=0.5))
    grown = make_plan(source_rows(rows), Options(fraction=0.5), catalog_of(first))
    before, after = splits(plan_rows(first)), splits(plan_rows(grown))
    added = after.keys() - before.keys()
    assert len(before) == 1000
    assert len(added) == 500
    assert all(int(id_) >= 3 * 2000 for id_ in added)
    shares = [sum(s == split for s in after.values()) for split in ("train", "validation", "test")]
    assert all(abs(n - share) <= 15 for n, share in zip(shares, (900, 300, 300), strict=True))
