"""The order of an epoch: a pure function of (dataset, filter, seed, epoch, lanes, window).

Keyed hashes decide, not a library's generator, whose stream may change from one version to the
next. So the same seed gives the same order on every machine, from a folder and from S3, and a run
goes on in mid-epoch from two integers, on any number of ranks and machines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING

from bintally.dataset.samples import Samples
from bintally.dataset.shard_cache import gib_for
from bintally.dataset.shard_files import ShardSchedule
from bintally.errors import UsageError
from bintally.loading.lanes import EpochOrder, choose_lanes, random_bits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Indices = NDArray[np.int64]

__all__ = [
    "EvaluationOrder",
    "Order",
    "TrainingOrder",
    "evaluation_batches",
    "rank_slice",
    "schedule_of",
    "step_seed",
]


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


def rank_slice(batch: Indices, rank: int, world_size: int) -> Indices:
    """A rank's part of a batch: parts differ by at most one sample, and none overlap."""
    start, stop = (len(batch) * r // world_size for r in (rank, rank + 1))
    return batch[start:stop]


@dataclass(frozen=True)
class TrainingOrder:
    """Which samples a rank takes at each step of training: all that decides it, and nothing else.

    The set of samples of a step does not depend on the numbers of ranks and machines. A machine
    takes every `num_machines`-th position, so those of its own lanes, which its ranks divide.
    """

    sizes: Indices
    """(shards,) samples of each shard."""
    batch_size: int
    """Of all ranks together."""
    seed: int
    lanes: int = 0
    window: int = 0
    """Shards of a lane whose samples are shuffled among each other, see `EpochOrder`; of both, 0 is
    what follows from the number of shards."""
    labels: Indices | None = None
    """(samples,) class indices, where every class is to come equally often."""
    rank: int = 0
    world_size: int = 1
    num_machines: int = 1
    """Each has as many ranks, one after the other."""
    parts: int = 1
    """Batches that a rank takes one after the other for a step."""

    def __post_init__(self) -> None:
        lanes, window = choose_lanes(int((self.sizes > 0).sum()), self.lanes, self.window)
        vars(self).update(lanes=lanes, window=window)

    @property
    def steps(self) -> int:
        """Of an epoch: whole batches only."""
        return int(self.sizes.sum()) // self.batch_size

    @property
    def largest_part(self) -> int:
        """The most samples that any rank takes at a time."""
        return -(-self.batch_size // (self.world_size * self.parts))

    def check_room(self, samples: Samples) -> None:
        """Raises `UsageError` where the cache cannot hold what a machine reads at a time."""
        machines = gcd(self.num_machines, self.lanes)
        needed = min(len(samples.sizes), self.lanes // machines * self.window) + 1
        if samples.room is None or needed <= samples.room:
            return
        lanes = self.lanes
        while lanes // machines >= samples.room and lanes % (2 * machines) == 0:
            lanes //= 2
        window = max(1, (samples.room - 1) // (lanes // machines))
        raise UsageError(
            f"--cache-gib: has room for {samples.room} shards, and {self.lanes} lanes with windows "
            f"of {self.window} shards want {needed} at a time; at least "
            f"{gib_for(needed * samples.largest_shard)}, or --lanes {lanes} --window {window}"
        )

    def whole_step(self, epoch: int, step: int) -> Indices:
        """The samples of a step, those of all ranks together."""
        import numpy as np

        order, entries = self._of_epoch(epoch)
        first = step * self.batch_size
        return _entries(order, entries, np.arange(first, first + self.batch_size))

    def batches(self, epoch: int, first_step: int) -> Iterator[Indices]:
        """This rank's batches of an epoch from a step on, `parts` for each step."""
        import numpy as np

        order, entries = self._of_epoch(epoch)
        ranks = self.world_size // self.num_machines
        machine, rank = divmod(self.rank, ranks)
        for step in range(first_step, self.steps):
            begin, end = step * self.batch_size, (step + 1) * self.batch_size
            first = begin + (machine - begin) % self.num_machines
            positions = rank_slice(np.arange(first, end, self.num_machines), rank, ranks)
            samples = _entries(order, entries, positions)
            for part in range(self.parts):
                yield rank_slice(samples, part, self.parts)

    def schedule(self, epoch: int, first_step: int) -> ShardSchedule:
        """Which shards this rank's machine reads for these batches, and when."""
        import numpy as np

        order, _ = self._of_epoch(epoch)
        ranks = self.world_size // self.num_machines
        machine, rank = divmod(self.rank, ranks)
        shards, first, last = order.spans(machine, self.num_machines)
        first, last = first // self.batch_size, last // self.batch_size
        ahead = (last >= first_step) & (first < self.steps)
        shards, first, last = shards[ahead], first[ahead].clip(first_step), last[ahead]
        return ShardSchedule(
            shards,
            (first - first_step) * self.parts,
            (last - first_step + 1) * self.parts - 1,
            # Its ranks bring them by turns.
            np.arange(len(shards)) % ranks == rank,
        )

    def _of_epoch(self, epoch: int) -> tuple[EpochOrder, Indices | None]:
        """The order, and of what: which samples its entries are, where some come more than once."""
        import numpy as np

        sizes, entries = self.sizes, None
        if self.labels is not None:
            entries = np.sort(_balanced(self.labels, self.seed, epoch))
            ends = entries.searchsorted(sizes.cumsum())
            sizes = np.diff(ends, prepend=0)
        return EpochOrder(sizes, self.seed, epoch, self.lanes, self.window), entries


def _entries(order: EpochOrder, entries: Indices | None, positions: Indices) -> Indices:
    at = order.at(positions)
    return at if entries is None else entries[at]


@dataclass(frozen=True)
class EvaluationOrder:
    """Every sample once, in the split's own order; a rank's part of each batch."""

    sizes: Indices
    """(shards,) samples of each shard."""
    batch_size: int
    """Of all ranks together."""
    seed: int
    rank: int = 0
    world_size: int = 1
    parts: int = 1

    @property
    def steps(self) -> int:
        """The batches that this rank has a part of."""
        whole, rest = divmod(int(self.sizes.sum()), self.batch_size)
        first, end = (rest * r // self.world_size for r in (self.rank, self.rank + 1))
        return whole + (first < end)

    def batches(self, _epoch: int, first_step: int) -> Iterator[Indices]:
        """This rank's batches from a step on, the last one shorter."""
        import numpy as np

        num_samples = int(self.sizes.sum())
        for step in range(first_step, self.steps):
            start = step * self.batch_size
            whole = np.arange(start, min(start + self.batch_size, num_samples))
            yield rank_slice(whole, self.rank, self.world_size)

    def schedule(self, epoch: int, first_step: int) -> ShardSchedule:
        """Which shards this rank reads for these batches, and when."""
        return schedule_of(self.sizes, self.batches(epoch, first_step))


Order = TrainingOrder | EvaluationOrder


def schedule_of(sizes: Indices, batches: Iterable[Indices]) -> ShardSchedule:
    """Which shards are read for batches, none of which goes back to a shard that one before it has
    gone past."""
    import numpy as np

    ends = sizes.cumsum()
    shards: dict[int, tuple[int, int]] = {}
    for number, batch in enumerate(batches):
        for shard in np.unique(ends.searchsorted(batch, side="right")).tolist():
            shards[shard] = shards.get(shard, (number, 0))[0], number
    first, last = np.array([*shards.values()], np.int64).reshape(-1, 2).T
    return ShardSchedule(np.array([*shards], np.int64), first, last, np.ones(len(first), bool))


def evaluation_batches(
    num_samples: int, batch_size: int, rank: int, world_size: int
) -> Iterator[Indices]:
    """A rank's batches of an evaluation, one after the other, the last of all shorter.

    What a batch holds does not depend on the number of ranks, so neither does a bit of the result:
    a network's rounding may depend on the batch that a photo is in.
    """
    import numpy as np

    number = -(-num_samples // batch_size)
    for at in range(number * rank // world_size, number * (rank + 1) // world_size):
        yield np.arange(at * batch_size, min((at + 1) * batch_size, num_samples))
