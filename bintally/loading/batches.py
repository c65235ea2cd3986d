"""Batches of a split in a given order, decoded ahead of the model."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bintally.dataset.labels import Classes
from bintally.dataset.samples import Samples
from bintally.dataset.shard_files import ShardSchedule
from bintally.errors import WorkError
from bintally.loading.augmentation import Draws
from bintally.loading.engine import DecodeError, Engine, first_undecodable
from bintally.loading.order import schedule_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from bintally.loading.engine import Photos

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


@dataclass(frozen=True)
class _Ahead:
    """A batch on its way."""

    wanted: Indices
    """As it was asked for."""
    taken: Indices
    """With what comes in place of what does not decode."""
    labels: Sequence[int]
    ids: Sequence[str]


def load(
    samples: Samples,
    classes: Classes,
    engine: Engine,
    order: Iterable[Indices],
    augment: Callable[[Sequence[str], Photos], Draws] | None = None,
    *,
    schedule: ShardSchedule | None = None,
    replaced: dict[int, int] | None = None,
    left_out: set[int] | None = None,
) -> Iterator[Batch]:
    """The batches of `order`, each an array of sample indices; `augment` says, for the ids of a
    batch and its photos, what of them is changed.

    `schedule` says when which shards are needed for it; without, all of `order` is looked at before
    it begins. With `replaced`, a photo that does not decode is noted there, and the next of its
    shard comes in its place, augmented as it would have been; with `left_out` it is noted there,
    and nothing does. Else `WorkError`, naming shard and sample, is raised.
    """
    import numpy as np
    import torch

    if schedule is None:
        order = [*order]
        schedule = schedule_of(samples.sizes, order)
    again: deque[Indices] = deque()
    """Batches that an engine had begun when it met a bad photo."""
    ahead: deque[_Ahead] = deque()
    label_of = {count: label for label, count in enumerate(classes)}

    def asked_for() -> Iterator[Indices]:
        for number, indices in enumerate(order):
            samples.advance(number)
            yield indices

    asked = asked_for()

    def photos() -> Iterator[tuple[Photos, Draws]]:
        while (wanted := again.popleft() if again else next(asked, None)) is not None:
            if left_out:
                wanted = wanted[~np.isin(wanted, [*left_out])]
                if not len(wanted):
                    continue
            taken = wanted
            if replaced:
                taken = np.array([replaced.get(int(i), int(i)) for i in wanted], np.int64)
            found, counts, ids = zip(*samples.read(taken), strict=True)
            if not label_of.keys() >= {*counts}:
                samples.labels(taken, classes)
            labels = [label_of[count] for count in counts]
            ahead.append(_Ahead(wanted, taken, labels, ids))
            draws = Draws.nothing(len(found))
            if augment is not None:
                # What comes in another one's place is augmented as that would have been.
                draws = augment([samples.id(i) for i in wanted] if replaced else ids, found)
            yield found, draws

    samples.follow(schedule, check=not engine.notices_damage)
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
                    read = ahead.popleft()
                    labels = torch.tensor(read.labels).to(batch.device, non_blocking=True)
                    yield Batch(batch, labels, read.taken, read.ids)
            except DecodeError as error:
                # An engine works ahead, so the bad photo is in one of the batches on their way.
                bad = _first_bad(samples, (read.taken for read in ahead))
                if bad is None:
                    raise WorkError(f"the engine failed: {error}") from error
                message = f"{samples.where(bad)}: the photo does not decode"
                if left_out is not None:
                    left_out.add(bad)
                    logger.warning(f"{message}; it is left out")
                elif replaced is not None:
                    replaced[bad] = stand_in(samples, bad)
                    logger.warning(f"{message}; {samples.id(replaced[bad])} comes in its place")
                else:
                    raise does_not_decode(samples, bad) from error
                again.extendleft(read.wanted for read in reversed(ahead))
                ahead.clear()
    finally:
        samples.follow(None)


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
