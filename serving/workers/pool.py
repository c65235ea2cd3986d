"""The workers of a server: started, asked, supervised and stopped.

Each has a place. When it dies, another is started there, and what the dead one had is counted once
more before that one joins the others: photo by photo, so that one that kills workers is known, and
refused when it has killed two. A worker that does not answer is taken for dead.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bintally.errors import CommandError, UsageError, WorkError
from bintally.machine import visible_gpus
from bintally.terminal.progress import say
from serving.answer import Counted
from serving.config import ServeConfig
from serving.workers.client import Worker, WorkerLost
from serving.workers.releases import Releases
from serving.workers.wire import Load, Photos, Release, WorkerSettings

__all__ = ["Shape", "Workers"]

BATCHES_PER_WORKER = 2
"""One in the model, and one being decoded so that the model need not wait for it."""
LOAD_S = 300.0
"""For a worker to start and load a checkpoint; some seconds do where all is well."""
STUCK_S = 20.0
"""For a worker to answer, two batches of its own included."""
RESTART_PAUSE_S = 2.0
MOST_CPU_WORKERS = 4
"""Unless more are asked for: each takes some 600 MiB."""


@dataclass(frozen=True)
class Shape:
    """How many workers of which kind: what the settings mean on this machine."""

    number: int
    gpus: float
    """Of a worker."""
    threads: int
    """Of a worker."""
    batch: int

    @classmethod
    def of(cls, config: ServeConfig, num_cores: int, num_gpus: int) -> Shape:
        """Pure. A CPU worker does best with a core to itself."""
        gpus = config.gpus_per_replica
        if gpus < 0:
            gpus = 1.0 if num_gpus else 0.0
        fitting = int(num_gpus / gpus) if gpus else min(num_cores, MOST_CPU_WORKERS)
        number = config.replicas or max(1, fitting)
        return cls(number, gpus, max(1, num_cores // number), config.batch or (32 if gpus else 8))

    def gpus_of(self, place: int, visible: Sequence[str]) -> Sequence[str]:
        """The GPUs of the worker in a place, among those that are there."""
        if not self.gpus or not visible:
            return []
        first = int(place * self.gpus) % len(visible)
        return visible[first : first + math.ceil(self.gpus)]


_Again = tuple[bytes, asyncio.Future[Counted]]
"""A photo that a dead worker had, and who waits for it."""


class Workers:
    """All of a server's workers. Belongs to one event loop."""

    def __init__(
        self, config: ServeConfig, shape: Shape, folder: Path, changed: Callable[[], None]
    ) -> None:
        """`folder` is for copies of the checkpoint; `changed` is called when there is another
        worker."""
        self._shape, self._changed = shape, changed
        self._settings = WorkerSettings(
            shape.gpus > 0, config.engine, config.precision, shape.batch, shape.threads
        )
        self._releases = Releases(config.checkpoint, folder)
        self._copy = Path()
        """The checkpoint to count with."""
        self._keepers: list[asyncio.Task[None]] = []
        self._alive: set[Worker] = set()
        self._ready: dict[int, Worker] = {}
        """By place: those that count."""
        self._again: list[list[_Again]] = [[] for _ in range(shape.number)]
        """By place."""

    @property
    def running(self) -> int:
        """Workers that can count."""
        return len(self._ready)

    @property
    def idle(self) -> int:
        """Workers that have nothing to do."""
        return sum(not worker.batches for worker in self._ready.values())

    @property
    def free(self) -> int:
        """Batches that the workers would take now."""
        return sum(BATCHES_PER_WORKER - worker.batches for worker in self._ready.values())

    async def start(self) -> Release:
        """Starts them all, and has them load the checkpoint; the release that they count with.

        Raises `UsageError` where the checkpoint does not count, `WorkError` where a worker dies.
        """
        self._copy = await asyncio.to_thread(self._releases.copy)
        first = [asyncio.get_running_loop().create_future() for _ in self._again]
        self._keepers = [
            asyncio.create_task(self._keep(place, ready)) for place, ready in enumerate(first)
        ]
        releases: list[Release] = await asyncio.gather(*first)
        return releases[0]

    async def take_in(self) -> Release:
        """Has them count with the checkpoint as it is now, one worker after the other.

        Raises `UsageError` for one that does not count: they go on with what they have.
        """
        copy = await asyncio.to_thread(self._releases.copy)
        while not self._ready:
            await asyncio.sleep(RESTART_PAUSE_S)
        first = next(iter(self._ready.values()))
        try:
            release = await self._load(first, copy)
        except WorkerLost:
            copy.unlink()
            raise UsageError(
                f"{self._releases.file}: the worker that loaded it died (out of memory?)"
            ) from None
        except UsageError:
            copy.unlink()
            raise
        before, self._copy = self._copy, copy
        # Those that are starting, too: they may have loaded the one before.
        for worker in self._alive - {first}:
            try:
                await self._update(worker)
            except (UsageError, WorkerLost):
                worker.kill()  # Whoever comes after it loads the new one.
        self._releases.keep(before, copy)
        return release

    def count(self, photos: Sequence[bytes]) -> Awaitable[Sequence[Counted | BaseException]]:
        """Has a batch counted by the worker that has least to do; there must be a `free` one.

        A photo that two workers died of has a `WorkerLost` for its result.
        """
        place, worker = min(self._ready.items(), key=lambda item: item[1].batches)
        worker.batches += 1
        return self._count(place, worker, photos)

    async def _count(
        self, place: int, worker: Worker, photos: Sequence[bytes]
    ) -> Sequence[Counted | BaseException]:
        try:
            counted: Sequence[Counted] = await worker.ask(Photos(photos), STUCK_S)
            return counted
        except WorkerLost:
            loop = asyncio.get_running_loop()
            again = [(photo, loop.create_future()) for photo in photos]
            # In time: the next worker takes longer to start than this takes to get here.
            self._again[place] += again
        finally:
            worker.batches -= 1
        results: list[Counted | BaseException] = await asyncio.gather(
            *(answer for _, answer in again), return_exceptions=True
        )
        return results

    async def stop(self) -> None:
        """Ends them, whatever they are at."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        alive = [*self._alive]
        for worker in alive:
            worker.kill()
        await asyncio.gather(*(worker.end for worker in alive))

    async def _keep(self, place: int, first: asyncio.Future[Release]) -> None:
        """Sees to it that a worker counts in a place; `first` is told of the first one."""
        while True:
            try:
                worker, release = await self._start(place)
            except CommandError as error:
                if not first.done():
                    first.set_exception(error)
                    return
                say(f"a worker does not start: {error}")
                await asyncio.sleep(RESTART_PAUSE_S)
                continue
            if not first.done():
                first.set_result(release)
            if await _count_again(worker, self._again[place]):
                self._ready[place] = worker
                self._changed()
            end = await worker.end
            self._ready.pop(place, None)
            say(f"a worker {end}; another one starts")

    async def _start(self, place: int) -> tuple[Worker, Release]:
        worker = await Worker.start(self._settings, self._shape.gpus_of(place, visible_gpus()))
        self._alive.add(worker)
        worker.end.add_done_callback(lambda end: self._alive.discard(worker))
        try:
            return worker, await self._update(worker)
        except WorkerLost:
            raise WorkError(
                f"a worker {await worker.end} before it could count (out of memory?)"
            ) from None
        except UsageError:
            worker.kill()
            raise

    async def _update(self, worker: Worker) -> Release:
        while True:
            copy = self._copy
            release = await self._load(worker, copy)
            if copy == self._copy:  # And no other was taken in meanwhile.
                return release

    async def _load(self, worker: Worker, copy: Path) -> Release:
        release: Release = await worker.ask(Load(str(copy), str(self._releases.file)), LOAD_S)
        return release


async def _count_again(worker: Worker, photos: list[_Again]) -> bool:
    """Counts what dead ones had, one photo at a time; False if the worker died of one."""
    while photos:
        photo, answer = photos.pop(0)
        if answer.done():
            continue
        try:
            (counted,) = await worker.ask(Photos([photo]), STUCK_S)
        except WorkerLost as lost:
            answer.set_exception(lost)
            return False
        if not answer.done():
            answer.set_result(counted)
    return True
