"""The order of an epoch: a pure function of (number of samples, seed, epoch).

A keyed hash of the sample's index decides, not a library's generator, whose stream may change from
one version to the next. So the same seed gives the same order on every machine, and a run goes on
in mid-epoch from two integers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Indices = NDArray[np.int64]

__all__ = [
    "epoch_order",
    "evaluation_batches",
    "flips",
    "rank_slice",
    "step_seed",
    "steps",
    "training_batches",
]


def _keys(indices: Indices, seed: int, epoch: int, purpose: str) -> NDArray[np.uint64]:
    """64 random bits for each index: SplitMix64 (Steele et al. 2014) from a hashed start."""
    import numpy as np

    digest = hashlib.blake2b(f"{seed}/{epoch}/{purpose}".encode(), digest_size=8).digest()
    start = np.uint64(int.from_bytes(digest, "little"))
    # Wrapping around is what the arithmetic is meant to do.
    with np.errstate(over="ignore"):
        z = start + (indices.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def epoch_order(num_samples: int, seed: int, epoch: int) -> Indices:
    """The global permutation of an epoch: (num_samples,) int64."""
    import numpy as np

    keys = _keys(np.arange(num_samples), seed, epoch, "order")
    return np.argsort(keys, kind="stable").astype(np.int64)


def flips(indices: Indices, seed: int, epoch: int) -> NDArray[np.bool_]:
    """Which of the samples are mirrored in this epoch, each with probability 0.5."""
    import numpy as np

    return (_keys(indices, seed, epoch, "flip") >> np.uint64(63)).astype(bool)


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
