"""Which split a sample goes to: whole groups, each class in the asked proportions.

Pure functions of their arguments. What is drawn at random is drawn by a keyed hash of names, so
that it depends neither on the order of the input nor on a library's generator.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from bintally.dataset.manifest import SPLITS

__all__ = ["assign_groups", "assign_splits", "shuffled"]


def _draw(seed: int, purpose: str, name: str) -> bytes:
    """A uniformly distributed key for `name`; equal on every machine, for ever."""
    return hashlib.blake2b(f"{seed}/{purpose}/{name}".encode(), digest_size=16).digest()


def shuffled(ids: Iterable[str], seed: int, purpose: str) -> list[str]:
    """`ids` in an order that is random, and a function of the set of ids, seed and purpose."""
    return sorted(ids, key=lambda id_: _draw(seed, purpose, id_))


def assign_groups(
    counts: Mapping[str, int],
    groups: Mapping[str, str],
    ratios: Sequence[float],
    seed: int,
    purpose: str,
) -> dict[str, int]:
    """Deals samples to parts: which of `ratios`, adding up to one, each sample belongs to.

    `counts` gives each sample's count, `groups` its group (for at least these ids). Groups are
    dealt whole and in random order, larger ones first, each to the part whose share of the group's
    classes is filled the least; the single samples that come last even out what the groups left
    (iterative stratification, Sechidis et al. 2011, with groups for labels).
    """
    members: dict[str, list[int]] = defaultdict(list)
    # Sorted, because sums of floats depend on their order: the caller's must not decide a draw.
    for id_, count in sorted(counts.items()):
        members[groups[id_]].append(count)
    total = Counter(counts.values())
    wanted = [{c: ratio * n for c, n in total.items()} for ratio in ratios]
    filled = [dict.fromkeys(total, 0) for _ in ratios]
    choices = [part for part, ratio in enumerate(ratios) if ratio > 0]

    def deficit(part: int, group: Sequence[int]) -> tuple[float, float]:
        want, have = wanted[part], filled[part]
        unfilled = 0.0
        # Not sum(), which from Python 3.12 on rounds otherwise: the last bit decides a draw.
        for c in group:
            unfilled += 1 - have[c] / want[c]
        return unfilled, ratios[part]

    chosen = {}
    for group in sorted(shuffled(members, seed, purpose), key=lambda g: -len(members[g])):
        part = max(choices, key=lambda p: deficit(p, members[group]))
        for count in members[group]:
            filled[part][count] += 1
        chosen[group] = part
    return {id_: chosen[groups[id_]] for id_ in counts}


def assign_splits(
    counts: Mapping[str, int],
    groups: Mapping[str, str],
    ratios: Sequence[float],
    seed: int,
) -> dict[str, str]:
    """The split of every sample; `ratios` are the shares of train, validation and test."""
    parts = assign_groups(counts, groups, ratios, seed, "split")
    return {id_: SPLITS[part] for id_, part in parts.items()}
