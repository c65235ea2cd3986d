"""Ten minutes of load: nothing fails, and nothing is kept."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.serving.load import drive
from tests.serving.conftest import StartServer

CLIENTS = 32
SECONDS = 600.0
LOOKS = 60


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
def test_under_long_load_no_request_fails_and_memory_stays_flat(
    checkpoint: Path, photos: list[bytes], start_server: StartServer
) -> None:
    """Memory of the server and its workers, from the third minute to the end."""
    server = start_server(checkpoint, "--replicas", 2)
    server.wait_until_ready()
    memory_mib = []
    with ThreadPoolExecutor(1) as pool:
        driving = pool.submit(drive, server.port, photos, CLIENTS, SECONDS)
        while not driving.done():
            memory_mib.append(server.memory_mib())
            time.sleep(SECONDS / LOOKS)
    load = driving.result()
    early, late = (
        statistics.median(looks)
        for looks in (memory_mib[LOOKS // 5 : 2 * LOOKS // 5], memory_mib[-LOOKS // 5 :])
    )
    # Shown by `pytest -rP`.
    print(f"{len(load.latencies_s)} requests, {load.per_second:.0f}/s", len(load.errors), "errors")
    print("MiB, every 10 s:", *map(round, memory_mib))
    assert load.errors == []
    assert late < 1.03 * early
