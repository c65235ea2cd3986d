"""Neighbour groups: photos of the same bin, taken before and after a pick.

In ABID the ids i and i+1 often show one bin before and after a single pick: near-copies whose
counts differ by one. Split apart at random, 41% of the evaluation photos have such a near-copy in
the training split, and a model is praised for remembering. So photos that may show the same bin
are grouped, and a group is never divided between splits. Two photos are neighbours when their ids
are of the same series of names and

- at a distance of one or two, and the bins share a product; or
- at a distance of one, one bin is empty and the other holds at most two products: the pick that
  emptied a bin (or the stow that filled it) leaves no product to recognise it by. Of 201 such
  pairs in ABID's first 8,000 photos 25% look alike (28×28 grey thumbnails that correlate by more
  than 0.7), where 1% of unrelated pairs do.

At a distance of three or more no two of ABID's bins share a product.

ABID has two series of names: ids are zero-padded to five digits in one and unpadded in the other,
which holds other photos: `988` is not `00988`. A photo whose id is no number, or of whose products
nothing is known, has no neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sharding.columns import whole
from sharding.planning.options import Options

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["count_leaks", "group_photos", "may_have_neighbours", "neighbour_groups"]

NUMBER = r"^[0-9]{1,18}$"
"""An id that is a number, and not one that only a library could count with."""
PADDED = 5
"""Digits of an id of the padded series, and more."""


def may_have_neighbours(ids: pa.Array, products: pa.Array) -> NDArray[np.bool_]:
    """Which photos are comparable with their neighbours: by their ids, and by their products."""
    import numpy as np
    import pyarrow.compute as pc

    numbered = pc.match_substring_regex(ids, NUMBER)
    return np.asarray(pc.and_(numbered, pc.is_valid(products)))


def neighbour_groups(ids: pa.Array, products: pa.Array) -> NDArray[np.int64]:
    """The group of every photo: which place its first member has.

    `ids` are ascending, each there once, and `products` the list of those in each one's bin.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from sharding.planning.loops import join_neighbours

    comparable = np.flatnonzero(may_have_neighbours(ids, products))
    names = ids.take(comparable)
    padded = np.asarray(pc.greater_equal(pc.binary_length(names), PADDED))
    # No number of one series is near one of the other, all of whose have fewer digits.
    numbers = names.cast(pa.int64()).to_numpy() + np.where(padded, 10**PADDED, 0)
    order = np.argsort(numbers, kind="stable")
    # Of names that mean one number ("00001", "000001") the last is the one that has neighbours.
    last = np.ones(len(order), bool)
    last[:-1] = np.diff(numbers[order]) != 0
    order = order[last]
    rows = comparable[order]
    ends, (offsets, text) = products.offsets.to_numpy(), _characters(products.values)
    groups = np.arange(len(ids))
    join_neighbours(rows, numbers[order], ends[rows], ends[rows + 1], offsets, text, groups)
    return groups


def _characters(texts: pa.StringArray) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Where each text begins, and where the last one ends; and the bytes of all, not copied."""
    import numpy as np

    _, offsets, text = texts.buffers()
    whole = np.frombuffer(offsets or b"", np.int32)
    return whole[texts.offset : texts.offset + len(texts) + 1], np.frombuffer(text or b"", np.uint8)


def group_photos(
    good: pa.Table, options: Options, alone: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], pa.Array]:
    """What is never divided between splits: each photo's place among the names of groups.

    A group that labels give has its name from them, every other one that of its first photo. Those
    that are `alone` join none.
    """
    import numpy as np
    import pyarrow.compute as pc

    ids = whole(good["id"])
    if options.group == "none":
        return np.arange(len(ids)), ids
    groups = np.arange(len(ids))
    if options.group == "neighbours":
        products = whole(good["skus"])
        if alone is not None:
            products = pc.if_else(alone, None, products)
        groups = neighbour_groups(ids, products)
    if good["group"].null_count == len(good):
        return groups, ids
    named = pc.coalesce(whole(good["group"]), ids.take(groups))
    if alone is not None:
        named = pc.if_else(alone, ids, named)
    encoded = named.dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary


def count_leaks(groups: NDArray[np.int64], splits: NDArray[np.int8]) -> tuple[int, int]:
    """How many evaluation photos have a photo of the same group in `train`, and of how many.

    `splits` holds the place of each photo's split in `SPLITS`, -1 for those in none.
    """
    import numpy as np

    in_train = np.zeros(int(groups.max(initial=-1)) + 1, bool)
    in_train[groups[splits == 0]] = True
    evaluated = in_train[groups[splits > 0]]
    return int(evaluated.sum()), len(evaluated)
