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
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["count_leaks", "neighbour_groups", "series_and_number"]

FARTHEST = 2
"""The distance of ids up to which one bin's photos lie."""
FEW_PRODUCTS = 2
"""A bin of at most so many products may be the same one as an empty neighbour."""


def series_and_number(id_: str) -> tuple[str, int] | None:
    """Which of ABID's two series of names an id belongs to, and its number there.

    Ids are zero-padded to five digits in one series and unpadded in the other, which holds other
    photos: `988` is not `00988`. None for a name that is no number.
    """
    if not (id_.isascii() and id_.isdigit()):
        return None
    return ("padded" if len(id_) >= 5 else "unpadded"), int(id_)


def _neighbours(
    products: Mapping[str, Sequence[str]],
) -> Iterator[tuple[str, str]]:
    """The pairs of ids that may show the same bin."""
    by_number = {key: id_ for id_ in products if (key := series_and_number(id_)) is not None}
    for (series, number), id_ in by_number.items():
        for distance in range(1, FARTHEST + 1):
            other = by_number.get((series, number + distance))
            if other is None:
                continue
            a, b = products[id_], products[other]
            emptied = distance == 1 and (not a) != (not b) and len(a) + len(b) <= FEW_PRODUCTS
            if emptied or not set(a).isdisjoint(b):
                yield id_, other


def neighbour_groups(products: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The group of every id, named by its smallest member.

    `products` gives the products (SKUs) in each id's bin.
    """
    parent = {id_: id_ for id_ in products}

    def root(id_: str) -> str:
        while parent[id_] != id_:
            parent[id_] = parent[parent[id_]]
            id_ = parent[id_]
        return id_

    for a, b in _neighbours(products):
        first, second = sorted((root(a), root(b)))
        parent[second] = first
    return {id_: root(id_) for id_ in products}


def count_leaks(groups: Mapping[str, str], splits: Iterable[tuple[str, str]]) -> tuple[int, int]:
    """How many evaluation photos have a photo of the same group in `train`, and of how many.

    `splits` gives (id, split) of every sample.
    """
    placed = [(groups[id_], split) for id_, split in splits]
    in_train = {group for group, split in placed if split == "train"}
    evaluated = Counter(group in in_train for group, split in placed if split != "train")
    return evaluated[True], evaluated.total()
