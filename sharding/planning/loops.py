"""What of a plan goes photo by photo, compiled: a billion of them are planned, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bintally.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["deal", "join_neighbours", "settle"]

FARTHEST = 2
"""The distance of ids up to which one bin's photos lie."""
FEW_PRODUCTS = 2
"""A bin of at most so many products may be the same one as an empty neighbour."""

_compiled = compiled()


@_compiled
def join_neighbours(
    rows: NDArray[np.int64],
    numbers: NDArray[np.int64],
    begins: NDArray[np.int32],
    ends: NDArray[np.int32],
    offsets: NDArray[np.int32],
    text: NDArray[np.uint8],
    groups: NDArray[np.int64],
) -> None:
    """Gives the photos at `rows` that may show the same bin one group, named by its smallest row.

    Photos are in the order of their `numbers`; that at place i has the products from `begins[i]` to
    `ends[i]`, and product k is the bytes of `text` from `offsets[k]` to `offsets[k + 1]`. `groups`
    holds a group for every row, at first itself.
    """
    for i in range(len(rows)):
        for j in range(i + 1, min(i + 1 + FARTHEST, len(rows))):
            distance = numbers[j] - numbers[i]
            if distance > FARTHEST:
                break
            own, other = ends[i] - begins[i], ends[j] - begins[j]
            alike = distance == 1 and (own == 0) != (other == 0) and own + other <= FEW_PRODUCTS
            for k in range(begins[i], ends[i]):
                for m in range(begins[j], ends[j]):
                    alike = alike or _are_equal(offsets, text, k, m)
            if alike:
                a, b = _first(groups, rows[i]), _first(groups, rows[j])
                groups[max(a, b)] = min(a, b)
    for row in range(len(groups)):
        groups[row] = _first(groups, row)


@_compiled
def _are_equal(offsets: NDArray[np.int32], text: NDArray[np.uint8], k: int, m: int) -> bool:
    size = offsets[k + 1] - offsets[k]
    if offsets[m + 1] - offsets[m] != size:
        return False
    at = 1  # From the end, for many products begin alike.
    while at <= size and text[offsets[k + 1] - at] == text[offsets[m + 1] - at]:
        at += 1
    are_equal: bool = at > size
    return are_equal


@_compiled
def _first(groups: NDArray[np.int64], row: int) -> int:
    while groups[row] != row:
        groups[row] = groups[groups[row]]
        row = groups[row]
    return row


@_compiled
def deal(
    ends: NDArray[np.int64],
    classes: NDArray[np.int32],
    wanted: NDArray[np.float64],
    filled: NDArray[np.int64],
    ratios: NDArray[np.float64],
    parts: NDArray[np.int8],
) -> None:
    """Deals groups, in their order, each to the part whose share of its classes is filled least.

    Group g's samples have the `classes` from `ends[g]` to `ends[g + 1]`. `wanted` and `filled` are
    (parts, classes); `filled` goes up with what is dealt. Of parts as full as each other the one
    with the larger ratio is taken, then the first.
    """
    for group in range(len(parts)):
        best, most = -1, 0.0
        for part in range(len(ratios)):
            if ratios[part] <= 0:
                continue
            unfilled = 0.0
            for k in range(ends[group], ends[group + 1]):
                unfilled += 1 - filled[part, classes[k]] / wanted[part, classes[k]]
            if best < 0 or unfilled > most or (unfilled == most and ratios[part] > ratios[best]):
                best, most = part, unfilled
        parts[group] = best
        for k in range(ends[group], ends[group + 1]):
            filled[best, classes[k]] += 1


@_compiled
def settle(
    chosen: NDArray[np.bool_], sizes: NDArray[np.int64], order: NDArray[np.int64], wanted: int
) -> None:
    """Takes groups out of `chosen`, then into it, in `order`, until those chosen have `wanted`
    samples, or as few less as whole groups allow."""
    number = sizes[chosen].sum()
    for group in order:
        if number > wanted and chosen[group]:
            chosen[group] = False
            number -= sizes[group]
    for group in order:
        if not chosen[group] and number + sizes[group] <= wanted:
            chosen[group] = True
            number += sizes[group]
