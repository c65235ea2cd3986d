"""A plan is a function of catalog and options alone: not of Python, either."""

from __future__ import annotations

import builtins
import hashlib
import json
import math
from collections.abc import Iterable
from typing import Any

import pytest

from bintally.dataset.catalog import CatalogRow
from sharding.planning.plan import Options, make_plan
from sharding.planning.split import shuffled
from sharding.source.catalog import Catalog

PLANS = {
    Options(): "b422325ece6a1f53978825116506b80a9b264246512553e9b105d8c2083b2778",
    Options(
        limit=3000, seed=1, split=(0.7, 0.2, 0.1)
    ): "cdc3a80aa89ac58002cf4267a715e4ae0d7a1ca60fdb8becb8a374cbde67eee3",
}
"""What was planned when this was written: a digest of the ids of every shard, by options."""


def catalog(number: int) -> Catalog:
    """A bucket of `number` photos with ABID's shares of counts, most in runs of two or three."""
    shares = (27, 114, 213, 250, 223, 173)
    labels = [c for c, n in enumerate(shares) for _ in range(-(-n * number // 1000))]
    order = shuffled(map(str, range(number)), 0, "labels")
    rows = []
    for place, drawn in enumerate(order):
        count = labels[int(drawn)]
        products = tuple(f"B{place // 3}-{n}" for n in range(min(count, 2)))
        rows.append(CatalogRow(f"{place + place // 7:05d}", count=count, skus=products))
    return Catalog(rows, {}, {}, {})


def digest(options: Options) -> str:
    shards = make_plan(catalog(4000), options).shards
    listed = json.dumps([(shard.path, list(shard.ids)) for shard in shards])
    return hashlib.sha256(listed.encode()).hexdigest()


def later_sum(values: Iterable[Any], /, start: Any = 0) -> Any:
    """`sum` as it is from Python 3.12 on, where that of floats is compensated."""
    items = [*values]
    floats = any(isinstance(item, float) for item in items)
    return math.fsum([start, *items]) if floats else SUM(items, start)


SUM = builtins.sum


@pytest.mark.parametrize("options", PLANS)
@pytest.mark.parametrize("add", [SUM, later_sum])
def test_the_plan_is_the_same_on_every_python(
    options: Options, add: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtins, "sum", add)
    assert digest(options) == PLANS[options]
