"""The workers of a server: started, asked, supervised and stopped.

When one dies, another is started, and what the dead one had is counted once more: photo by photo,
by a worker that has nothing else then, so that one that kills workers is known, and refused when it
has killed two. A worker that does not answer is taken for dead.
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
LOOK_S = 0.01
"""Between looks for a worker that is there, or has nothing to do any more."""
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
        self._ready: list[Worker] = []
        self._again: list[tuple[bytes, asyncio.Future[Counted]]] = []
        """Photos that dead workers had, and who waits for them."""
        self._counting_again: asyncio.Task[None] | None = None

    @property
    def running(self) -> int:
        """Workers that can count."""
        return len(self._ready)

    @property
    def idle(self) -> int:
        """Workers that have nothing to do."""
        return sum(not worker.batches for worker in self._open)

    @property
    def free(self) -> int:
        """Batches that the workers would take now."""
        return sum(BATCHES_PER_WORKER - worker.batches for worker in self._open)

    @property
    def _open(self) -> list[Worker]:
        return [worker for worker in self._ready if not worker.alone and not worker.gone]

    async def start(self) -> Release:
        """Starts them all, and has them load the checkpoint; the release that they count with.

        Raises `UsageError` where the checkpoint does not count, `WorkError` where a worker dies.
        """
        self._copy = await asyncio.to_thread(self._releases.copy)
        first = [asyncio.get_running_loop().create_future() for _ in range(self._shape.number)]
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
        first = self._ready[0]
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
        worker = min(self._open, key=lambda worker: worker.batches)
        worker.batches += 1
        return self._count(worker, photos)

    async def _count(
        self, worker: Worker, photos: Sequence[bytes]
    ) -> Sequence[Counted | BaseException]:
        try:
            counted: Sequence[Counted] = await worker.ask(Photos(photos), STUCK_S)
            return counted
        except WorkerLost:
            loop = asyncio.get_running_loop()
            again = [(photo, loop.create_future()) for photo in photos]
        finally:
            worker.batches -= 1
        self._again += again
        if self._counting_again is None or self._counting_again.done():
            self._counting_again = asyncio.create_task(self._count_again())
        results: list[Counted | BaseException] = await asyncio.gather(
            *(answer for _, answer in again), return_exceptions=True
        )
        return results

    async def _count_again(self) -> None:
        while self._again:
            while not self._open:
                await asyncio.sleep(LOOK_S)
            worker = min(self._open, key=lambda worker: worker.batches)
            worker.alone = True
            while worker.batches:
                await asyncio.sleep(LOOK_S)
            while self._again and not worker.gone:
                photo, answer = self._again.pop(0)
                if answer.done():
                    continue
                try:
                    (counted,) = await worker.ask(Photos([photo]), STUCK_S)
                    answer.set_result(counted)
                except WorkerLost as lost:
                    answer.set_exception(lost)
            worker.alone = False
            self._changed()

    async def stop(self) -> None:
        """Ends them, whatever they are at."""
        tasks = [*self._keepers, *filter(None, [self._counting_again])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
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
            self._ready.append(worker)
            self._changed()
            end = await worker.end
            self._ready.remove(worker)
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
