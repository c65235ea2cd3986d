"""The processes of a job find each other, and never one of an earlier attempt."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch._C._distributed_c10d import TCPStore

from training.launch.rendezvous import name_attempt


def test_an_attempt_has_a_name_of_its_own_whoever_comes_first() -> None:
    """torchrun's store is the same for all attempts, and holds what dead processes told."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def start(rank: int, world_size: int) -> Future[str]:
        store = TCPStore("127.0.0.1", server.port, timeout=timedelta(seconds=60))
        return pool.submit(name_attempt, store, rank, world_size, 60)

    names = []
    with ThreadPoolExecutor(8) as pool:
        for ranks in ([0, 1, 2], [2, 1, 0], [1, 0], [1, 2, 0]):
            started = [start(rank, len(ranks)) for rank in ranks]
            (name,) = {future.result() for future in started}
            names.append(name)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("rank", [0, 1])
def test_nobody_waits_for_ever_for_a_process_that_is_lost(rank: int) -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises((TimeoutError, RuntimeError)):
        name_attempt(server, rank, 2, wait_s=0.2)
