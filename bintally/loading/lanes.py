"""Lanes: in which order an epoch goes through shards, a few at a time.

Worked out window by window: an epoch of any length costs little to begin, and little memory.
"""

from __future__ import annotations

import hashlib
from math import gcd
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Indices = NDArray[np.int64]

__all__ = ["EpochOrder", "choose_lanes", "random_bits"]

MOST_LANES = 64
WIDEST_WINDOW = 16
"""Shards."""


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


def choose_lanes(num_shards: int, lanes: int = 0, window: int = 0) -> tuple[int, int]:
    """Lanes, and shards of a window, for an epoch over so many shards, where they are not given.

    From 64 shards on, the windows that are read and those that come next are a quarter of the
    shards at most; fewer shards are shuffled among each other lane by lane. A lane has 16 shards or
    more, or 8 where there would be less than 8 lanes: it may begin and end in the middle of one,
    which is fetched for its neighbour, too.
    """
    if not lanes:
        lanes = 1
        while lanes < MOST_LANES and num_shards >= 2 * lanes * (8 if lanes < 8 else 16):
            lanes *= 2
    if not window and num_shards >= 64:
        window = min(WIDEST_WINDOW, max(1, num_shards // (8 * lanes)))
    # A lane may begin and end in the middle of a shard.
    return lanes, window or num_shards // lanes + 2


class EpochOrder:
    """The order of one epoch over shards of `sizes` samples: a permutation of all samples, which
    are counted shard after shard.

    Shards are shuffled, and their samples in that order cut into `lanes` parts whose lengths differ
    by at most one. Within its lane a sample is shuffled among those of `window` neighbouring
    shards. What comes at position k of the epoch is the next sample of lane k mod `lanes`. Windows
    are worked out when they are entered, so an epoch of any length costs little to begin.
    """

    def __init__(self, sizes: Indices, seed: int, epoch: int, lanes: int, window: int) -> None:
        import numpy as np

        self._seed, self._epoch, self._num_lanes, self._window = seed, epoch, lanes, window
        first = np.cumsum(sizes) - sizes
        shards = np.flatnonzero(sizes)
        keys = random_bits(shards, seed, epoch, "shards")
        self._shards = shards[np.argsort(keys, kind="stable")]
        """As they are read."""
        self._first = first[self._shards]
        """The first sample of each."""
        self._ends = np.cumsum(sizes[self._shards])
        """Where each ends in the concatenation of all."""
        self._begins = self._ends - sizes[self._shards]
        self.num_samples = int(sizes.sum())
        self._entered: dict[int, tuple[int, Indices]] = {}
        """Of each lane the window that was read last: where it begins, and its samples."""

    def at(self, positions: Indices) -> Indices:
        """The samples at some positions, which are ascending and equally far from each other."""
        import numpy as np

        samples = np.empty(len(positions), np.int64)
        lanes, places = positions % self._num_lanes, positions // self._num_lanes
        apart = int(positions[1] - positions[0]) if len(positions) > 1 else 1
        # So many positions later it is the same lane's turn.
        turn = self._num_lanes // gcd(self._num_lanes, apart)
        for i in range(min(turn, len(positions))):
            samples[i::turn] = self._of_lane(int(lanes[i]), places[i::turn])
        return samples

    def _of_lane(self, lane: int, places: Indices) -> Indices:
        import numpy as np

        parts, done = [], 0
        while done < len(places):
            begin, samples = self._entered.get(lane, (0, places[:0]))
            if not begin <= places[done] < begin + len(samples):
                begin, samples = self._entered[lane] = self._enter(lane, int(places[done]))
            until = done + int(places[done:].searchsorted(begin + len(samples)))
            parts.append(samples[places[done:until] - begin])
            done = until
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _enter(self, lane: int, place: int) -> tuple[int, Indices]:
        """The window of a lane that has its sample number `place`."""
        import numpy as np

        lane_begin, lane_end = self._bounds(lane), self._bounds(lane + 1)
        first, at = self._ends.searchsorted([lane_begin, lane_begin + place], side="right")
        start = int(first + (at - first) // self._window * self._window)
        pieces = slice(start, min(start + self._window, len(self._ends)))
        begins = np.maximum(self._begins[pieces], lane_begin)
        ends = np.minimum(self._ends[pieces], lane_end)
        lengths = np.maximum(ends - begins, 0)
        samples = np.arange(lengths.sum()) + np.repeat(
            self._first[pieces] + begins - self._begins[pieces] - (lengths.cumsum() - lengths),
            lengths,
        )
        keys = random_bits(samples, self._seed, self._epoch, "order")
        return int(begins[0] - lane_begin), samples[np.argsort(keys, kind="stable")]

    def _bounds(self, lane: int) -> int:
        """Where a lane begins in the concatenation of all shards."""
        whole, rest = divmod(self.num_samples, self._num_lanes)
        return lane * whole + min(lane, rest)

    def spans(self, offset: int, stride: int) -> tuple[Indices, Indices, Indices]:
        """Which shards those have to read who take the positions `offset` + i × `stride`: shard,
        and the first and the last position at which it may be needed, each (spans,), by the first.
        """
        import numpy as np

        found = []
        common = gcd(stride, self._num_lanes)
        for lane in range(offset % common, self._num_lanes, common):
            begin, end = self._bounds(lane), self._bounds(lane + 1)
            if begin == end:
                continue
            first, last = self._ends.searchsorted([begin, end - 1], side="right")
            pieces = np.arange(first, last + 1)
            windows = (pieces - first) // self._window
            opens = np.maximum(self._begins[first + windows * self._window], begin) - begin
            closing = np.minimum(first + (windows + 1) * self._window - 1, last)
            closes = np.minimum(self._ends[closing], end) - 1 - begin
            spans = (at * self._num_lanes + lane for at in (opens, closes))
            found.append((self._shards[pieces], *spans))
        if not found:
            return (np.empty(0, np.int64),) * 3
        shards, opens, closes = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.argsort(opens, kind="stable")
        return shards[order], opens[order], closes[order]
