"""Batches of a split in a given order, decoded ahead of the model."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bintally.dataset.labels import Classes
from bintally.dataset.samples import Samples
from bintally.errors import WorkError
from bintally.loading.engine import DecodeError, Engine, first_undecodable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Indices = NDArray[np.int64]

__all__ = ["Batch", "does_not_decode", "load", "stand_in"]

logger = logging.getLogger(__name__)


@dataclass
class Batch:
    """Photos and their labels; unpacks as `images, labels`."""

    images: torch.Tensor
    """(batch, 3, size, size), channels_last, normalised, on the engine's device."""
    labels: torch.Tensor
    """(batch,) int64 class indices, on the same device."""
    indices: Indices
    """(batch,) int64: which samples of the split these are."""
    ids: Sequence[str] = ()
    """The samples' ids, where photos were read for the batch."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter((self.images, self.labels))


def load(
    samples: Samples,
    classes: Classes,
    engine: Engine,
    order: Iterable[Indices],
    flips: Callable[[Indices], NDArray[np.bool_]] | None = None,
    *,
    whole_order: Indices | None = None,
    replaced: dict[int, int] | None = None,
    left_out: set[int] | None = None,
) -> Iterator[Batch]:
    """The batches of `order`, each an array of sample indices; `flips` says which are mirrored.

    `whole_order` is what shards that are streamed are brought by; without it, by the split's own
    order. With `replaced`, a photo that does not decode is noted there, and the next of its shard
    comes in its place, mirrored where it would have been; with `left_out` it is noted there, and
    nothing does. Else `WorkError`, naming shard and sample, is raised.
    """
    import numpy as np
    import torch

    source = iter(order)
    again: deque[Indices] = deque()
    """Batches that an engine had begun when it met a bad photo."""
    ahead: deque[tuple[Indices, Indices, list[int]]] = deque()
    """Those that are on their way: as they were asked for, with what comes in their place, and the
    labels."""

    def photos() -> Iterator[tuple[list[NDArray[np.uint8]], NDArray[np.bool_]]]:
        while (wanted := again.popleft() if again else next(source, None)) is not None:
            if left_out:
                wanted = wanted[~np.isin(wanted, [*left_out])]
                if not len(wanted):
                    continue
            taken = wanted
            if replaced:
                taken = np.array([replaced.get(int(i), int(i)) for i in wanted], np.int64)
            mirrored = np.zeros(len(wanted), bool) if flips is None else flips(wanted)
            # Photo by photo, for a shard that is streamed is at hand for a while only.
            read = [(samples.photo(i), samples.labels([i], classes)[0]) for i in taken]
            ahead.append((wanted, taken, [label for _, label in read]))
            yield [photo for photo, _ in read], mirrored

    whole = np.arange(len(samples)) if whole_order is None else whole_order
    samples.follow(whole, check=not engine.notices_damage)
    try:
        while True:
            images = engine.run(photos())
            try:
                while True:
                    batch = next(images, None)
                    if batch is None:
                        if not engine.notices_damage:
                            _settle(samples, go_on=replaced is not None or left_out is not None)
                        return
                    _, indices, counts = ahead.popleft()
                    labels = torch.tensor(counts).to(batch.device, non_blocking=True)
                    yield Batch(batch, labels, indices, [samples.ids[i] for i in indices])
            except DecodeError as error:
                # An engine works ahead, so the bad photo is in one of the batches on their way.
                bad = _first_bad(samples, (taken for _, taken, _ in ahead))
                if bad is None:
                    raise WorkError(f"the engine failed: {error}") from error
                message = f"{samples.where(bad)}: the photo does not decode"
                if left_out is not None:
                    left_out.add(bad)
                    logger.warning(f"{message}; it is left out")
                elif replaced is not None:
                    replaced[bad] = stand_in(samples, bad)
                    logger.warning(f"{message}; {samples.ids[replaced[bad]]} comes in its place")
                else:
                    raise does_not_decode(samples, bad) from error
                again.extendleft(wanted for wanted, _, _ in reversed(ahead))
                ahead.clear()
    finally:
        samples.follow(np.empty(0, np.int64))


def _settle(samples: Samples, *, go_on: bool) -> None:
    """Raises `WorkError` where the epoch's shards are not what was written, or only says so."""
    try:
        samples.settle()
    except WorkError as error:
        if not go_on:
            raise
        logger.warning(f"{error}; its photos are taken as they are")


def _first_bad(samples: Samples, ahead: Iterable[Indices]) -> int | None:
    for indices in ahead:
        bad = first_undecodable([samples.photo(i) for i in indices])
        if bad is not None:
            return int(indices[bad])
    return None


def does_not_decode(samples: Samples, bad: int) -> WorkError:
    """What is told where a bad photo is the end."""
    return WorkError(
        f"{samples.where(bad)}: the photo does not decode; it was whole when it was written: "
        "`bintally verify` lists all damage, and --on-bad-sample skip goes on without it"
    )


def stand_in(samples: Samples, bad: int) -> int:
    """The next sample of the same shard that decodes: the same on every rank and in every run."""
    candidate = samples.neighbour(bad)
    while candidate != bad:
        if first_undecodable([samples.photo(candidate)]) is None:
            return candidate
        candidate = samples.neighbour(candidate)
    raise WorkError(f"{samples.where(bad)}: neither it nor any other photo of its shard decodes")
