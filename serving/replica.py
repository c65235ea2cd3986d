"""A replica: the Ray Serve deployment that counts batches of photos with the release served."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bintally.options import EngineName, PrecisionName
from serving.answer import Counted
from serving.releases import current

if TYPE_CHECKING:
    from bintally.counting.counter import Counter

__all__ = ["Replica", "ReplicaConfig"]


@dataclass(frozen=True)
class ReplicaConfig:
    """What a replica needs to know."""

    releases: str
    """The folder of accepted checkpoints."""
    gpu: bool
    engine: EngineName
    precision: PrecisionName
    batch_size: int
    threads: int
    """Of PyTorch, on a CPU."""


class Replica:
    """Counts batches, two at a time: one in the model while the next is decoded.

    A new release is loaded beside the old one, which goes on counting until the new one is ready,
    so no request waits or is lost.
    """

    def __init__(self, config: ReplicaConfig) -> None:
        import torch

        torch.set_num_threads(config.threads)
        self._config = config
        self._decoding, self._computing = asyncio.Lock(), asyncio.Lock()
        self._counter = self._load()
        self._loading: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

    def _load(self) -> Counter:
        from bintally.counting.counter import Counter

        config = self._config
        folder = Path(config.releases)
        return Counter(
            folder / current(folder).file,
            device="cuda" if config.gpu else "cpu",
            engine=config.engine,
            precision=config.precision,
            batch_size=config.batch_size,
        )

    async def count(self, photos: Sequence[bytes]) -> Counted:
        """Counts a batch. A photo that does not decode has a reason for its row."""
        # One of them for both halves, whatever is released in between.
        counter = self._counter
        try:
            async with self._decoding:
                images, reasons = await asyncio.to_thread(counter.decode, photos)
            predicted: list[list[float]] = []
            if images is not None:
                async with self._computing:
                    predicted = await asyncio.to_thread(counter.predict, images)
        except Exception as error:
            # No photo brings this about; a GPU in disorder does, and a new process mends it.
            self._failure = error
            raise
        rows = iter(predicted)
        return Counted(
            counter.sha256,
            counter.classes,
            counter.decision.rule,
            [next(rows) if reason is None else reason for reason in reasons],
        )

    async def check_health(self) -> None:
        """Ray Serve calls this every other second, and replaces a replica where it raises. A good
        moment to see whether there is a new release."""
        if self._failure is not None:
            raise self._failure
        busy = self._loading is not None and not self._loading.done()
        released = current(Path(self._config.releases)).sha256
        if not busy and released != self._counter.sha256:
            self._loading = asyncio.create_task(self._take_in())

    async def _take_in(self) -> None:
        self._counter = await asyncio.to_thread(self._load)
