"""The order of an epoch: a pure function of (number of samples, seed, epoch).

A keyed hash of the sample's index decides, not a library's generator, whose stream may change from
one version to the next. So the same seed gives the same order on every machine, and a run goes on
in mid-epoch from two integers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Indices = NDArray[np.int64]

__all__ = [
    "EvaluationOrder",
    "Order",
    "TrainingOrder",
    "epoch_order",
    "evaluation_batches",
    "random_bits",
    "rank_slice",
    "step_seed",
    "steps",
    "training_batches",
]


def random_bits(
    keys: Indices | NDArray[np.uint64], seed: int, epoch: int, purpose: str
) -> NDArray[np.uint64]:
    """64 random bits for each key: SplitMix64 (Steele et al. 2014) from a hashed start."""
    import numpy as np

    digest = hashlib.blake2b(f"{seed}/{epoch}/{purpose}".encode(), digest_size=8).digest()
    start = np.uint64(int.from_bytes(digest, "little"))
    # Wrapping around is what the arithmetic is meant to do.
    with np.errstate(over="ignore"):
        z = start + (keys.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def epoch_order(
    num_samples: int,
    seed: int,
    epoch: int,
    *,
    labels: Indices | None = None,
    windows: tuple[Indices, int] | None = None,
) -> Indices:
    """The global order of an epoch: (num_samples,) int64, a permutation unless it is balanced.

    With `labels`, the class of each sample, every class comes equally often (up to one), the
    members of each as evenly as its size allows; which come once more is drawn anew each epoch.

    With `windows`, the shard of each sample and a number of shards, the shards are shuffled and
    dealt to windows of so many, and samples are shuffled within their window: what streams shards
    then needs few at a time. As shards are fair draws of the split, so are windows.
    """
    import numpy as np

    positions = np.arange(num_samples)
    entries = positions if labels is None else _balanced(labels, seed, epoch)
    keys = random_bits(positions, seed, epoch, "order")
    if windows is None:
        return entries[np.argsort(keys, kind="stable")].astype(np.int64)
    shards, size = windows
    shard_keys = random_bits(np.arange(shards.max(initial=-1) + 1), seed, epoch, "shards")
    rank = np.argsort(np.argsort(shard_keys, kind="stable"), kind="stable")
    return entries[np.lexsort((keys, rank[shards[entries]] // size))].astype(np.int64)


def _balanced(labels: Indices, seed: int, epoch: int) -> Indices:
    """As many samples as there are labels, every class of them equally often."""
    import numpy as np

    classes = np.unique(labels)
    luck = np.argsort(random_bits(classes, seed, epoch, "balance"), kind="stable")
    quotas = np.full(len(classes), len(labels) // max(1, len(classes)))
    quotas[luck[: len(labels) - quotas.sum()]] += 1
    drawn = [np.empty(0, np.int64)]
    for label, quota in zip(classes, quotas, strict=True):
        members = np.flatnonzero(labels == label)
        # Everyone comes before anyone comes again.
        for turn in range(-(-quota // len(members))):
            keys = random_bits(members, seed, epoch, f"balance {turn}")
            drawn.append(members[np.argsort(keys, kind="stable")][: quota - turn * len(members)])
    return np.concatenate(drawn)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of what a step draws at random on a process, dropout say, whatever came before."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}/step".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def steps(num_samples: int, batch_size: int) -> int:
    """Steps of a training epoch: whole batches only."""
    return num_samples // batch_size


def training_batches(order: Indices, batch_size: int, first_step: int) -> Iterator[Indices]:
    """The batches of all ranks together, from `first_step` on; a rest of an epoch is left out."""
    for step in range(first_step, steps(len(order), batch_size)):
        yield order[step * batch_size : (step + 1) * batch_size]


def rank_slice(batch: Indices, rank: int, world_size: int) -> Indices:
    """A rank's part of a batch: parts differ by at most one sample, and none overlap."""
    start, stop = (len(batch) * r // world_size for r in (rank, rank + 1))
    return batch[start:stop]


@dataclass(frozen=True)
class TrainingOrder:
    """Which samples a rank takes at each step of training: all that decides it, and nothing else.

    The order of all ranks together does not depend on how many there are.
    """

    num_samples: int
    batch_size: int
    """Of all ranks together."""
    seed: int
    labels: Indices | None = None
    windows: tuple[Indices, int] | None = None
    """See `epoch_order`."""
    rank: int = 0
    world_size: int = 1
    parts: int = 1
    """Batches that a rank takes one after the other for a step."""

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return steps(self.num_samples, self.batch_size)

    @property
    def largest_part(self) -> int:
        """The most samples that any rank takes at a time."""
        return -(-self.batch_size // (self.world_size * self.parts))

    def epoch(self, epoch: int) -> Indices:
        """The whole order of an epoch, all ranks together."""
        return epoch_order(
            self.num_samples, self.seed, epoch, labels=self.labels, windows=self.windows
        )

    def batches(self, epoch: int, first_step: int) -> Iterator[Indices]:
        """This rank's batches of an epoch from a step on, `parts` for each step."""
        for batch in training_batches(self.epoch(epoch), self.batch_size, first_step):
            mine = rank_slice(batch, self.rank, self.world_size)
            for part in range(self.parts):
                yield rank_slice(mine, part, self.parts)


@dataclass(frozen=True)
class EvaluationOrder:
    """Every sample once, in the split's own order; a rank's part of each batch, as in training."""

    num_samples: int
    batch_size: int
    """Of all ranks together."""
    seed: int
    rank: int = 0
    world_size: int = 1
    parts: int = 1

    @property
    def steps(self) -> int:
        """The batches that this rank has a part of."""
        whole, rest = divmod(self.num_samples, self.batch_size)
        first, end = (rest * r // self.world_size for r in (self.rank, self.rank + 1))
        return whole + (first < end)

    def epoch(self, _epoch: int) -> Indices:
        """The same in every epoch."""
        import numpy as np

        return np.arange(self.num_samples)

    def batches(self, _epoch: int, first_step: int) -> Iterator[Indices]:
        """This rank's batches from a step on, the last one shorter."""
        import numpy as np

        for step in range(first_step, self.steps):
            start = step * self.batch_size
            whole = np.arange(start, min(start + self.batch_size, self.num_samples))
            yield rank_slice(whole, self.rank, self.world_size)


Order = TrainingOrder | EvaluationOrder


def evaluation_batches(
    num_samples: int, batch_size: int, rank: int, world_size: int
) -> Iterator[Indices]:
    """A rank's batches of an evaluation: whole ones, in turn, the last one shorter.

    What a batch holds does not depend on the number of ranks, so neither does a bit of the result:
    a network's rounding may depend on the batch that a photo is in.
    """
    import numpy as np

    for start in range(rank * batch_size, num_samples, world_size * batch_size):
        yield np.arange(start, min(start + batch_size, num_samples))
