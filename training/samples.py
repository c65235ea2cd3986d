"""Samples of a split by index: photos as views of memory-mapped tars, nothing copied."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bintally.command import UsageError, WorkError
from bintally.places import Folder, Place
from sharding.dataset import Dataset, parse_index

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Samples"]


@dataclass(frozen=True)
class _Position:
    shard: int
    photo: slice
    count: slice


class Samples:
    """The samples of one split, in the order of its shards."""

    def __init__(self, place: Place, dataset: Dataset, split: str) -> None:
        """Opens a split's shards in a folder.

        Raises `UsageError` for a place or split that cannot be read, `WorkError` where a shard is
        missing or is not as long as the dataset says.
        """
        if not isinstance(place, Folder):
            raise UsageError(f"{place}: training reads shards from a folder; copy them to one")
        if split not in dataset.splits:
            raise UsageError(f"--split {split}: must be one of {', '.join(dataset.splits)}")
        self.split = split
        self.ids: list[str] = []
        self._positions: list[_Position] = []
        self._paths: list[str] = []
        self._maps: list[mmap.mmap] = []
        for number, shard in enumerate(dataset.splits[split].shards):
            tar = place.root / shard.path
            try:
                with tar.open("rb") as file:
                    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                index = parse_index(place.get(shard.index))
            except (OSError, ValueError) as error:
                raise WorkError(
                    f"{tar}: the shard or its index cannot be read ({error}); "
                    f"`python -m sharding verify {place}` lists all damage"
                ) from error
            if len(data) != shard.bytes or len(index) != shard.samples:
                raise WorkError(
                    f"{tar}: {len(data):,} bytes and {len(index):,} samples, not {shard.bytes:,} "
                    f"and {shard.samples:,}; `python -m sharding verify {place}` lists all damage"
                )
            self._maps.append(data)
            self._paths.append(shard.path)
            for sample in index:
                jpg, cls = sample["jpg"], sample["cls"]
                self.ids.append(sample.id)
                self._positions.append(
                    _Position(
                        number,
                        slice(jpg.offset, jpg.offset + jpg.size),
                        slice(cls.offset, cls.offset + cls.size),
                    )
                )

    def __len__(self) -> int:
        return len(self.ids)

    def photo(self, index: int) -> NDArray[np.uint8]:
        """A photo's JPEG bytes: (size,) uint8, a view of the tar."""
        import numpy as np

        at = self._positions[index]
        view = np.frombuffer(self._maps[at.shard], np.uint8)
        return view[at.photo]

    def count(self, index: int) -> int:
        """The number of items in the bin."""
        at = self._positions[index]
        return int(self._maps[at.shard][at.count])

    def where(self, index: int) -> str:
        """How an error names a sample."""
        return f"{self._paths[self._positions[index].shard]}: sample {self.ids[index]}"

    def labels(
        self, indices: Sequence[int] | NDArray[np.int64], classes: Sequence[int]
    ) -> list[int]:
        """Class indices of samples: which of `classes` each count is.

        Raises `WorkError` for a count that is none of them.
        """
        index_of = {count: i for i, count in enumerate(classes)}
        labels = []
        for index in indices:
            count = self.count(int(index))
            if count not in index_of:
                raise WorkError(
                    f"{self.where(int(index))}: its count {count} is none of the classes "
                    f"{classes[0]} to {classes[-1]}"
                )
            labels.append(index_of[count])
        return labels
