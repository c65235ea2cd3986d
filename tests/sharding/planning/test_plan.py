"""A plan is a function of source and options alone."""

from __future__ import annotations

import hashlib
import json

import pytest

from sharding.planning.options import Options
from sharding.planning.plan import make_plan
from sharding.source.rows import SourceRows
from tests.sharding.columns import shuffle, source_rows

PLANS = {
    Options(): "b422325ece6a1f53978825116506b80a9b264246512553e9b105d8c2083b2778",
    Options(
        limit=3000, seed=1, split=(0.7, 0.2, 0.1)
    ): "cdc3a80aa89ac58002cf4267a715e4ae0d7a1ca60fdb8becb8a374cbde67eee3",
}
"""What was planned when this was written: a digest of the ids of every shard, by options."""


def source(number: int) -> SourceRows:
    """A bucket of `number` photos with ABID's shares of counts, most in runs of two or three."""
    shares = (27, 114, 213, 250, 223, 173)
    labels = [c for c, n in enumerate(shares) for _ in range(-(-n * number // 1000))]
    order = shuffle([*map(str, range(number))], 0, "labels")
    rows = []
    for place, drawn in enumerate(order):
        count = labels[int(drawn)]
        products = tuple(f"B{place // 3}-{n}" for n in range(min(count, 2)))
        rows.append({"id": f"{place + place // 7:05d}", "count": count, "skus": products})
    return source_rows(rows)


def digest(options: Options) -> str:
    plan = make_plan(source(4000), options)
    ids = plan.table["id"].to_pylist()
    listed = json.dumps([(shard.path, [ids[r] for r in shard.rows]) for shard in plan.shards])
    return hashlib.sha256(listed.encode()).hexdigest()


@pytest.mark.parametrize("options", PLANS)
def test_the_plan_is_the_same_on_every_machine_and_in_every_version(options: Options) -> None:
    assert digest(options) == PLANS[options]
