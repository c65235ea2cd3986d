"""How long all of ABID, and twenty times as much, takes to plan and to write up: `make_plan` and
the catalog, over an invented source."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.measure import (
    Contestant,
    Measurement,
    forget_peak,
    peak_memory_mib,
    take_turns,
)
from benchmarks.sharding.invented import class_totals, invent_source
from bintally.dataset.manifest import Shard
from sharding.columns import prepare_arrow
from sharding.finish import describe_shards
from sharding.planning.options import Options
from sharding.planning.plan import PlannedShard, make_plan
from sharding.shard import ShardRecord, written_schema

__all__ = ["MANY_IMAGES", "describe_plan", "measure_plan", "plan"]

MANY_IMAGES = 10_000_000
TIMEOUT_S = 1800.0


def plan(num_images: int, compiled: Path) -> Measurement:
    """Seconds and memory of a plan with the default options and of its catalog, in this process.

    `compiled` is where what numba compiles is kept: an empty folder has it compiled.
    """
    os.environ["NUMBA_CACHE_DIR"] = str(compiled)
    prepare_arrow()
    import_module("sharding.planning.loops")  # A build does it while it lists.
    source = invent_source(num_images)
    forget_peak()
    rows_mib = peak_memory_mib()
    began = time.perf_counter()
    planned = make_plan(source, Options())
    plan_s = time.perf_counter() - began
    records = [_record(shard) for shard in planned.shards]
    began = time.perf_counter()
    dataset, _, _ = describe_shards(planned, records, Options().seed, None)
    catalog_s = time.perf_counter() - began
    sharded = sum(split.samples for split in dataset.splits.values())
    assert sharded == sum(class_totals(num_images)[:6])
    return {
        "plan_s": plan_s,
        "catalog_s": catalog_s,
        "peak_memory_mib": peak_memory_mib(),
        "rows_mib": rows_mib,
    }


def _record(shard: PlannedShard) -> ShardRecord:
    """What a job would have written of a shard."""
    import numpy as np
    import pyarrow as pa

    size = len(shard.rows)
    drawn = np.random.default_rng(shard.rows[0])
    columns = {
        "width": pa.array(drawn.integers(300, 700, size, np.int32)),
        "height": pa.array(drawn.integers(300, 700, size, np.int32)),
        "crc32": pa.array(drawn.integers(0, 2**32, size, np.uint32)),
        "reason": pa.nulls(size, pa.string()),
    }
    of_all = Shard(shard.path, shard.index, size, 56_000 * size, "0" * 64, {"1": size})
    return ShardRecord(of_all, pa.record_batch(columns, schema=written_schema()))


def measure_plan(num_images: int, num_rounds: int) -> dict[str, Any]:
    """Medians of time and memory, each round in a process of its own, and the time of the first
    plan on a machine, in which the loops are compiled."""
    with tempfile.TemporaryDirectory(prefix="bintally-compiled-") as compiled:
        contestant = Contestant("plan", partial(plan, num_images, Path(compiled)), {})
        (result,) = take_turns(
            [contestant], 1 + num_rounds, task="plan", num_warmups=0, timeout_s=TIMEOUT_S
        )
    if result.error is not None:
        return {"error": result.error}
    first, *rounds = result.rounds
    medians = {name: statistics.median(measured[name] for measured in rounds) for name in first}
    kept: Sequence[Measurement] = [dict(measured) for measured in rounds]
    return {"images": num_images, **medians, "first_plan_s": first["plan_s"], "rounds": kept}


def describe_plan(measured: Mapping[str, Any]) -> str:
    return (
        f"make_plan over {measured['images']:,} rows: {measured['plan_s']:.1f} s "
        f"({measured['first_plan_s']:.1f} s where its loops are compiled first), and "
        f"{measured['catalog_s']:.1f} s for the catalog; peak {measured['peak_memory_mib']:,.0f} "
        f"MiB, of which Python and the rows are {measured['rows_mib']:,.0f} (median of "
        f"{len(measured['rounds'])}). The rows are invented, with ABID's classes and runs."
    )
