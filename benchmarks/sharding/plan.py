"""How long all of ABID takes to plan: `make_plan` over an invented catalog of its size."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sharding.source.catalog import Catalog

from benchmarks.measure import Contestant, Measurement, peak_memory_mib, take_turns
from bintally.dataset.catalog import CatalogRow
from sharding.planning.options import Options
from sharding.planning.plan import make_plan

__all__ = ["NUM_IMAGES", "class_totals", "describe_plan", "invent_catalog", "measure_plan", "plan"]

NUM_IMAGES = 535_234
"""ABID's photos with their metadata."""
UP_TO_5 = (9_701, 41_147, 76_863, 90_058, 80_550, 62_448)
"""Those of 0 to 5 items."""
MOST_ITEMS = 20
DECAY = 0.85
"""Bins of one more item, from 6 on: the rest, in a tail like ABID's."""
IN_RUNS = 0.73
"""Share of the photos that have a neighbour with the same bin."""
PAIRS, TRIPLES = 0.72, 0.28
"""Of the photos in runs: those in runs of two and of three."""


def class_totals(num_images: int) -> list[int]:
    """Photos of 0, 1, 2 … items, as ABID has them."""
    totals = [total * num_images // NUM_IMAGES for total in UP_TO_5]
    rest = num_images - sum(totals)
    weights = [DECAY**step for step in range(MOST_ITEMS - len(totals) + 1)]
    tail = [int(rest * weight / sum(weights)) for weight in weights]
    tail[0] += rest - sum(tail)
    return totals + tail


def invent_catalog(num_images: int, seed: int = 0) -> Catalog:
    """A catalog with ABID's classes and runs of neighbours, without photos or JSON."""
    rng = random.Random(seed)
    totals = class_totals(num_images)
    counts = [count for count, total in enumerate(totals) for _ in range(total)]
    # Empty bins have no product to share, so that the others' runs make up for them.
    in_runs = IN_RUNS * num_images / (num_images - totals[0])
    weights = (1 - in_runs, in_runs * PAIRS / 2, in_runs * TRIPLES / 3)
    runs: list[list[int]] = [[0] for _ in range(totals[0])]
    start = totals[0]
    # Runs are cut from the counts in order: their photos' counts are near, the totals exact.
    while start < num_images:
        length = rng.choices((1, 2, 3), weights)[0]
        runs.append(counts[start : start + length])
        start += length
    rng.shuffle(runs)
    rows: list[CatalogRow] = []
    num_products = 0
    for run in runs:
        most = max(run)
        products = [f"B{num_products + number:09d}" for number in range(most)]
        num_products += most
        for count in run:
            skus = tuple(products[:count])
            rows.append(CatalogRow(f"{len(rows) + 1:05d}", count=count, bytes=56_000, skus=skus))
    source = {"images": num_images, "metadata": num_images, "sha256": "0" * 64}
    return Catalog(rows, source, {}, {})


def plan(num_images: int) -> Measurement:
    """Seconds and memory of a plan with the default options, in this process."""
    catalog = invent_catalog(num_images)
    before_mib = peak_memory_mib()
    began = time.perf_counter()
    planned = make_plan(catalog, Options())
    seconds = time.perf_counter() - began
    assert sum(len(shard.ids) for shard in planned.shards) == sum(class_totals(num_images)[:6])
    peak_mib = peak_memory_mib()
    return {"plan_s": seconds, "peak_memory_mib": peak_mib, "catalog_mib": before_mib}


def measure_plan(num_images: int, num_rounds: int) -> dict[str, Any]:
    """Time and memory of a plan, each in a process of its own."""
    contestant = Contestant("plan", partial(plan, num_images), {})
    (result,) = take_turns([contestant], num_rounds, task="plan", num_warmups=0)
    if result.error is not None:
        return {"error": result.error}
    names = ("plan_s", "peak_memory_mib", "catalog_mib")
    medians = {name: statistics.median(r[name] for r in result.rounds) for name in names}
    rounds: Sequence[Measurement] = [dict(measured) for measured in result.rounds]
    return {"images": num_images, **medians, "rounds": rounds}


def describe_plan(measured: Mapping[str, Any]) -> str:
    return (
        f"make_plan over {measured['images']:,} rows: {measured['plan_s']:.1f} s, peak "
        f"{measured['peak_memory_mib']:,.0f} MiB, of which Python and the rows are "
        f"{measured['catalog_mib']:,.0f} (median of {len(measured['rounds'])}). The rows are "
        "invented, with ABID's classes and runs; a build also holds the compressed JSON."
    )
