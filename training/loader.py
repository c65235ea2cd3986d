"""The loader: batches of a split in a given order, decoded ahead of the model."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from bintally.command import WorkError
from training.config import OnBadSample
from training.engine import DecodeError, Engine, first_undecodable
from training.order import epoch_order, flips, rank_slice, steps, training_batches
from training.samples import Samples

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Indices = NDArray[np.int64]

__all__ = ["Batch", "TrainingLoader", "load"]


@dataclass(frozen=True)
class Batch:
    """What the model is given at a step."""

    indices: Indices
    """(batch,) which samples of the split these are."""
    images: torch.Tensor
    """(batch, 3, size, size), channels_last, normalised, on the engine's device."""
    labels: torch.Tensor
    """(batch,) int64 class indices, on the same device."""
    waited_s: float
    """How long it was waited for when it was asked for."""


class TrainingLoader:
    """This rank's batches of training, epoch after epoch, and how far they have come.

    The order of an epoch is a function of the dataset, the seed and the epoch (see `epoch_order`),
    and of the number of shards that a cache holds where they are streamed. So two integers say
    where it stands, on any number of ranks: `epoch` and `step` of what comes next.
    """

    def __init__(
        self,
        samples: Samples,
        classes: Sequence[int],
        engine: Engine,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        balanced: bool = False,
        on_bad_sample: OnBadSample = "stop",
    ) -> None:
        """`batch_size` is that of all ranks together; `balanced` has every class equally often."""
        self.samples, self.classes, self.engine = samples, classes, engine
        self.batch_size, self.seed = batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.on_bad_sample: OnBadSample = on_bad_sample
        self.steps = steps(len(samples), batch_size)
        """Of an epoch; a rest that fills no batch is left out."""
        self.epoch = self.step = 0
        self.replaced: dict[int, int] = {}
        """Samples that did not decode here, and what has come in their place."""
        self._counts = samples.all_counts() if balanced else None

    def state_dict(self) -> dict[str, int]:
        """Where it stands."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on where another loader stood, of the same dataset, seed and batch size."""
        self.epoch, self.step = state["epoch"], state["step"]

    def __iter__(self) -> Iterator[Batch]:
        """What is left of the epoch; at its end the next one begins.

        Raises `WorkError`, naming shard and sample, where a photo does not decode and
        `on_bad_sample` is `stop`; with `skip` the next photo of its shard comes in its place.
        """
        epoch, samples = self.epoch, self.samples
        order = epoch_order(
            len(samples), self.seed, epoch, labels=self._counts, windows=samples.windows
        )
        batches = load(
            samples,
            self.classes,
            self.engine,
            (
                rank_slice(batch, self.rank, self.world_size)
                for batch in training_batches(order, self.batch_size, self.step)
            ),
            lambda indices: flips(indices, self.seed, epoch),
            whole_order=order,
            replaced=self.replaced if self.on_bad_sample == "skip" else None,
        )
        for batch in batches:
            self.step += 1
            yield batch
        self.epoch, self.step = epoch + 1, 0


def load(
    samples: Samples,
    classes: Sequence[int],
    engine: Engine,
    order: Iterable[Indices],
    flips: Callable[[Indices], NDArray[np.bool_]] | None = None,
    *,
    whole_order: Indices | None = None,
    replaced: dict[int, int] | None = None,
) -> Iterator[Batch]:
    """The batches of `order`, each an array of sample indices; `flips` says which are mirrored.

    `whole_order` is what shards that are streamed are brought by; without it, by the split's own
    order. With `replaced`, a photo that does not decode is noted there, and the next of its shard
    comes in its place; else `WorkError`, naming shard and sample, is raised.
    """
    import numpy as np
    import torch

    source = iter(order)
    ahead: deque[Indices] = deque()
    again: list[Indices] = []

    def photos() -> Iterator[tuple[list[NDArray[np.uint8]], NDArray[np.bool_]]]:
        for indices in chain(again, source):
            taken = indices
            if replaced:
                taken = np.array([replaced.get(int(i), int(i)) for i in indices], np.int64)
            ahead.append(taken)
            mirrored = np.zeros(len(indices), bool) if flips is None else flips(indices)
            yield [samples.photo(i) for i in taken], mirrored

    samples.follow(np.arange(len(samples)) if whole_order is None else whole_order)
    try:
        while True:
            images = engine.run(photos())
            try:
                while True:
                    asked = time.monotonic()
                    batch = next(images, None)
                    waited_s = time.monotonic() - asked
                    if batch is None:
                        return
                    indices = ahead.popleft()
                    labels = torch.tensor(samples.labels(indices, classes))
                    yield Batch(
                        indices, batch, labels.to(batch.device, non_blocking=True), waited_s
                    )
            except DecodeError as error:
                # An engine works ahead, so the bad photo is in one of the batches on their way.
                bad = _first_bad(samples, ahead)
                if bad is None:
                    raise WorkError(f"the engine failed: {error}") from error
                if replaced is None:
                    raise WorkError(
                        f"{samples.where(bad)}: the photo does not decode; it was whole when it "
                        "was written: `python -m sharding verify` lists all damage, and "
                        "--on-bad-sample skip trains without it"
                    ) from error
                replaced[bad] = _stand_in(samples, bad)
                again = [np.where(batch == bad, replaced[bad], batch) for batch in ahead]
                ahead.clear()
    finally:
        samples.follow(np.empty(0, np.int64))


def _first_bad(samples: Samples, ahead: Iterable[Indices]) -> int | None:
    for indices in ahead:
        bad = first_undecodable([samples.photo(i) for i in indices])
        if bad is not None:
            return int(indices[bad])
    return None


def _stand_in(samples: Samples, bad: int) -> int:
    """The next sample of the same shard that decodes: the same on every rank and in every run."""
    candidate = samples.neighbour(bad)
    while candidate != bad:
        if first_undecodable([samples.photo(candidate)]) is None:
            return candidate
        candidate = samples.neighbour(candidate)
    raise WorkError(f"{samples.where(bad)}: neither it nor any other photo of its shard decodes")
