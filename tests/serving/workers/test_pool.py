"""Workers that die, get stuck or are given a bad checkpoint; real processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import serving.workers.pool as pool
from serving.answer import Counted
from serving.config import ServeConfig
from serving.workers.client import WorkerLost
from serving.workers.pool import Shape, Workers


@pytest.mark.parametrize(
    ("settings", "cores", "gpus", "wanted"),
    [
        ({}, 2, 0, Shape(2, 0, 1, 8)),
        ({}, 64, 0, Shape(4, 0, 16, 8)),
        ({"replicas": 1}, 2, 0, Shape(1, 0, 2, 8)),
        ({"replicas": 8}, 2, 0, Shape(8, 0, 1, 8)),
        ({}, 16, 4, Shape(4, 1, 4, 32)),
        ({"gpus_per_replica": 0.5}, 16, 1, Shape(2, 0.5, 8, 32)),
        ({"gpus_per_replica": 0}, 2, 1, Shape(2, 0, 1, 8)),
        ({"batch": 3}, 1, 0, Shape(1, 0, 1, 3)),
    ],
)
def test_workers_share_cores_and_gpus(
    settings: dict[str, Any], cores: int, gpus: int, wanted: Shape
) -> None:
    assert Shape.of(ServeConfig(Path("best.pt"), **settings), cores, gpus) == wanted


def test_each_worker_sees_its_own_gpus() -> None:
    def seen(gpus: float, visible: Sequence[str]) -> list[Sequence[str]]:
        return [Shape(4, gpus, 1, 8).gpus_of(place, visible) for place in range(4)]

    assert seen(1, ["0", "1", "2", "3"]) == [["0"], ["1"], ["2"], ["3"]]
    assert seen(0.5, ["GPU-a", "GPU-b"]) == [["GPU-a"], ["GPU-a"], ["GPU-b"], ["GPU-b"]]
    assert seen(0, ["0"]) == [[]] * 4


@asynccontextmanager
async def one_worker(checkpoint: Path, folder: Path) -> AsyncIterator[Workers]:
    config = ServeConfig(checkpoint, replicas=1)
    workers = Workers(config, Shape.of(config, 1, 0), folder, lambda: None)
    await workers.start()
    try:
        yield workers
    finally:
        await workers.stop()


class Deadly:
    """Stands for a photo that a decoder dies of: ends the process that is sent it."""

    def __reduce__(self) -> tuple[Callable[[int], Any], tuple[int]]:
        return os._exit, (1,)


async def count(workers: Workers, photos: Sequence[Any]) -> Sequence[Counted | BaseException]:
    while not workers.free:
        await asyncio.sleep(0.05)
    return await workers.count(photos)


def same(found: Sequence[Counted | BaseException], wanted: Sequence[object]) -> None:
    """In fp32, some CPUs round otherwise for another number of photos."""
    for one, other in zip(found, wanted, strict=True):
        assert isinstance(one, Counted)
        assert isinstance(other, Counted)
        assert one.scores == pytest.approx(other.scores, abs=1e-6)


def process_of(workers: Workers) -> int:
    (worker,) = workers._alive
    return worker._process.pid


@pytest.mark.slow
def test_a_photo_that_kills_two_workers_is_refused_and_those_beside_it_are_counted(
    checkpoint: Path, photos: list[bytes], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> None:
        async with one_worker(checkpoint, tmp_path) as workers:
            alone = await count(workers, photos[:2])
            first, bad, last = await count(workers, [photos[0], Deadly(), photos[1]])
            assert isinstance(bad, WorkerLost)
            for found in ([first, last], await count(workers, photos[:2])):
                same(found, alone)

    asyncio.run(scenario())
    assert capfd.readouterr().err.count("a worker ended with 1; another one starts\n") == 2


@pytest.mark.slow
def test_a_stuck_worker_is_replaced_and_what_it_had_is_counted(
    checkpoint: Path,
    photos: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def scenario() -> None:
        async with one_worker(checkpoint, tmp_path) as workers:
            wanted = await count(workers, photos[:3])
            os.kill(process_of(workers), signal.SIGSTOP)
            monkeypatch.setattr(pool, "STUCK_S", 5.0)
            found = await count(workers, photos[:3])
            same(found, wanted)

    asyncio.run(scenario())
    assert "a worker did not answer and was killed; another one starts\n" in capfd.readouterr().err
