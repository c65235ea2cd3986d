"""Which split a sample goes to: whole groups, each class in the asked proportions.

Pure functions of their arguments. What is drawn at random is drawn by a keyed hash of names, so
that it depends neither on the order of the input nor on a library's generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bintally.dataset.manifest import SPLITS

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["assign_groups", "prescribed_splits", "ranks", "shuffled"]

AT_A_TIME = 2**14
"""Names that are Python's objects."""


def shuffled(names: pa.Array, seed: int, purpose: str) -> NDArray[np.int64]:
    """The places of `names` in an order that is random, and a function of the set of names, seed
    and purpose; equal on every machine, for ever."""
    import numpy as np
    import pyarrow as pa

    prefix = hashlib.blake2b(f"{seed}/{purpose}/".encode(), digest_size=16)

    def draw(name: bytes) -> bytes:
        drawn = prefix.copy()
        drawn.update(name)
        return drawn.digest()

    keys = np.empty((2, len(names)), np.uint64)
    for start in range(0, len(names), AT_A_TIME):
        some = names.slice(start, AT_A_TIME).cast(pa.binary()).to_pylist()
        drawn = np.frombuffer(b"".join(map(draw, some)), ">u8")
        keys[:, start : start + AT_A_TIME] = drawn.reshape(-1, 2).T
    order = np.argsort(keys[0])
    if (np.diff(keys[0][order]) == 0).any():
        order = np.lexsort(keys[::-1])
    return order


def ranks(names: pa.Array, seed: int, purpose: str) -> NDArray[np.int64]:
    """Where each of `names` comes when they are shuffled: some of them by their ranks come in the
    order in which they would be shuffled alone."""
    import numpy as np

    found = np.empty(len(names), np.int64)
    found[shuffled(names, seed, purpose)] = np.arange(len(names))
    return found


def assign_groups(
    classes: NDArray[np.int32],
    groups: NDArray[np.int64],
    ranks: NDArray[np.int64],
    ratios: Sequence[float],
    filled: NDArray[np.int64] | None = None,
) -> NDArray[np.int8]:
    """Deals samples to parts: which of `ratios`, adding up to one, each sample belongs to.

    `classes` are those of the samples, from 0, in the order of their ids, and `groups` the place of
    each one's group in `ranks`. Groups are dealt whole and by their ranks, larger ones first, each
    to the part whose share of the group's classes is filled the least; the single samples that come
    last even out what the groups left (iterative stratification, Sechidis et al. 2011, with groups
    for labels). `filled`, (parts, classes), is what the parts have already.
    """
    import numpy as np

    from sharding.planning.loops import deal

    sizes = np.bincount(groups, minlength=len(ranks))
    present = np.flatnonzero(sizes)
    order = present[np.lexsort((ranks[present], -sizes[present]))]
    place = np.empty(len(ranks), np.int64)
    place[order] = np.arange(len(order))
    # Within a group by id, because sums of floats depend on their order.
    samples = np.argsort(place[groups], kind="stable")
    ends = np.concatenate([[0], np.cumsum(sizes[order])])
    if filled is None:
        filled = np.zeros((len(ratios), int(classes.max(initial=0)) + 1), np.int64)
    total = np.bincount(classes, minlength=filled.shape[1]) + filled.sum(axis=0)
    wanted = np.asarray(ratios)[:, None] * total
    parts = np.empty(len(order), np.int8)
    deal(ends, classes[samples], wanted, filled.copy(), np.asarray(ratios, float), parts)
    return parts[place[groups]]


def prescribed_splits(table: pa.Table) -> NDArray[np.int8]:
    """The place in `SPLITS` of the split that labels prescribe, in the column `split`; else -1."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    splits = pc.index_in(table["split"], pa.array(SPLITS)).fill_null(-1)
    return np.asarray(splits, np.int8)
