"""Shards from a server that is far away, beside what its latency allows."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.sharding.contestants import Usage, run_ours
from benchmarks.sharding.server import DistantServer
from bintally.errors import WorkError
from bintally.terminal.progress import say

__all__ = ["CONNECTIONS", "LATENCY_S", "describe_distant", "measure_distant"]

LATENCY_S = 0.1
CONNECTIONS = 64
"""As many as `bintally build` opens when not told otherwise."""


def measure_distant(bucket: Path, scratch: Path, num_rounds: int) -> dict[str, Any]:
    """Our shard phase against what so many connections at such a latency allow at most."""
    say(f"building from {1000 * LATENCY_S:.0f} ms away")
    allowed = CONNECTIONS / LATENCY_S
    rates, cpus = [], []
    options = ["--connections", str(CONNECTIONS)]
    cache = scratch / "distant-cache"
    with DistantServer(bucket, LATENCY_S) as server:
        for number in range(num_rounds + 1):
            server.photos.clear()
            output = scratch / f"distant-{number}"
            try:
                usage: Usage = run_ours(server.endpoint, server.bucket, output, cache, options)
            except WorkError as error:
                return {"error": str(error)}
            finally:
                shutil.rmtree(output, ignore_errors=True)
            if number:  # The first one fills the cache with metadata.
                asked, answered = zip(*server.photos, strict=True)
                rates.append(len(asked) / (max(answered) - min(asked)))
                cpus.append(1000 * usage.cpu_s / len(asked))
    return {
        "connections": CONNECTIONS,
        "latency_s": LATENCY_S,
        "photos": sum(path.suffix == ".jpg" for path in (bucket / "bin-images").iterdir()),
        "allowed_per_s": allowed,
        "photos_per_s": statistics.median(rates),
        "share": statistics.median(rates) / allowed,
        "cpu_s_per_1000": statistics.median(cpus),
        "rounds": rates,
    }


def describe_distant(measured: Mapping[str, Any]) -> str:
    return (
        f"{measured['photos_per_s']:,.0f} photos/s ({min(measured['rounds']):,.0f}–"
        f"{max(measured['rounds']):,.0f}), {measured['share']:.0%} of the "
        f"{measured['allowed_per_s']:,.0f} that {measured['connections']} connections allow when "
        f"every answer takes {1000 * measured['latency_s']:.0f} ms. From the first photo's request "
        f"to the last one's answer, {measured['photos']:,} photos, metadata in the cache, shards "
        "of the default size."
    )
