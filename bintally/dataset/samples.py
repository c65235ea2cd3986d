"""Samples of a split by index: photos as views of memory-mapped tars, nothing copied."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING

from bintally.dataset.index import ShardIndex, read_shard_index
from bintally.dataset.manifest import CATALOG, Dataset
from bintally.dataset.shard_cache import ShardCache
from bintally.dataset.shard_files import CachedShards, FolderShards, ShardFiles, ShardSchedule
from bintally.dataset.where import select
from bintally.errors import UsageError, WorkError
from bintally.storage.folder import Folder
from bintally.storage.place import Place

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["Samples"]

LABEL = "cls"
"""How the name of what holds a sample's count ends."""
CONNECTIONS = 16
"""Indexes fetched at a time, where all are."""
INDEXES_KEPT = 2048


class Samples:
    """The samples of one split, in the order of its shards."""

    def __init__(
        self,
        place: Place,
        dataset: Dataset,
        split: str,
        cache: ShardCache | None = None,
        where: str | None = None,
    ) -> None:
        """Opens a split's shards in a folder, or on S3, where they are read through a cache.

        `where` leaves samples out, by an expression over the catalog's columns (`select`). Raises
        `UsageError` for a place, split or expression that cannot be used, `WorkError` where a shard
        is missing or is not as long as the dataset says.
        """
        import numpy as np

        if split not in dataset.splits:
            raise UsageError(f"split {split}: must be one of {', '.join(dataset.splits)}")
        self.split = split
        self._place = place
        self._shards = dataset.splits[split].shards
        if cache is not None:
            self._tars: ShardFiles = CachedShards(place, self._shards, cache)
        elif isinstance(place, Folder):
            self._tars = FolderShards(place, self._shards)
        else:
            raise UsageError(f"{place}: shards on S3 are read through a local --cache; name one")
        self.identity = dataset.sha256 if where is None else f"{dataset.sha256} where {where}"
        """The dataset's, and the part of it that was asked for."""
        self.class_counts = dataset.splits[split].class_counts
        """How many samples have each count."""
        self.sizes = np.array([shard.samples for shard in self._shards], np.int64)
        """(shards,) the samples of each shard."""
        self._rows: NDArray[np.int64] | None = None
        """Which of the split's samples these are, where they are not all of them."""
        self._begins = self.sizes.cumsum() - self.sizes
        """(shards,) which of the split's samples is each one's first."""
        if where is not None:
            self._rows, counts = self._select(where)
            self.class_counts = {str(count): 0 for count in dataset.classes} | counts
            shards = self._begins.searchsorted(self._rows, side="right") - 1
            self.sizes = np.bincount(shards, minlength=len(self._shards))
        self._ends = self.sizes.cumsum()
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @cached_property
    def ids(self) -> list[str]:
        """Of all samples: every index is read."""
        shards, ids, first = self.sizes.nonzero()[0].tolist(), list[str](), 0
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            for shard, found in zip(shards, pool.map(self._read_index, shards), strict=True):
                end = int(self._ends[shard])
                if self._rows is None:
                    ids += found.ids
                else:
                    ids += [found.ids[row] for row in self._rows[first:end] - self._begins[shard]]
                first = end
        return ids

    @property
    def room(self) -> int | None:
        """How many shards a cache with a limit holds at a time."""
        return self._tars.room

    @property
    def largest_shard(self) -> int:
        """Bytes."""
        return max((shard.bytes for shard in self._shards), default=0)

    def follow(self, schedule: ShardSchedule | None, *, check: bool = False) -> None:
        """Says which shards are about to be needed; None ends it.

        With `check`, `settle` says whether they are what was written.
        """
        self._tars.follow(schedule, check=check)

    def advance(self, batch: int) -> None:
        """Says that the samples of a batch of the schedule are about to be asked for."""
        self._tars.advance(batch)

    def settle(self) -> None:
        """Returns when all that had to be checked has been. Raises `WorkError`, naming a shard
        that is not what was written."""
        self._tars.settle()

    def read(self, indices: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.uint8], int, str]]:
        """Samples, one after the other: a photo's JPEG bytes, (size,) uint8, the number of items in
        the bin, and the id.

        Raises `WorkError` where the number is none any more.
        """
        import numpy as np

        shards = self._ends.searchsorted(indices, side="right")
        rows = indices if self._rows is None else self._rows[indices]
        # All samples' places at once: one by one, they would take longer than the photos.
        for index, shard, row in zip(
            indices.tolist(), shards.tolist(), (rows - self._begins[shards]).tolist(), strict=True
        ):
            found, tar = self._index(shard), self._tars.open(shard)
            (begin, size), (at, length) = found.photos[row].tolist(), found.labels[row].tolist()
            text = tar[at : at + length]
            if not text.isdigit():
                raise WorkError(
                    f"{self.where(index)}: its count is no number; it was one when it was written: "
                    "`bintally verify` lists all damage"
                )
            view = np.frombuffer(tar, np.uint8, size, begin)
            # A view of a shard in a cache would keep it there as long as its batch is on its way.
            yield view if self._tars.lasting else view.copy(), int(text), found.ids[row]

    def id(self, index: int) -> str:
        """A sample's id."""
        shard = self._shard(index)
        row = index if self._rows is None else int(self._rows[index])
        return self._index(shard).ids[row - int(self._begins[shard])]

    def photo(self, index: int) -> NDArray[np.uint8]:
        """A photo's JPEG bytes: (size,) uint8."""
        return self._one(index)[0]

    def count(self, index: int) -> int:
        """The number of items in the bin. Raises `WorkError` where it is none any more."""
        return self._one(index)[1]

    def where(self, index: int) -> str:
        """How an error names a sample."""
        return f"{self._shards[self._shard(index)].path}: sample {self.id(index)}"

    def neighbour(self, index: int) -> int:
        """The next sample of the same shard, after the last one the first."""
        shard = self._shard(index)
        end = int(self._ends[shard])
        return end - int(self.sizes[shard]) if index + 1 == end else index + 1

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

    def all_labels(self, classes: Sequence[int]) -> NDArray[np.int64]:
        """(samples,) every sample's class index, by the dataset's catalog: no shard is read.

        Raises `WorkError` as `labels` does, and for a catalog that lacks a sample.
        """
        import numpy as np

        counts = self._all_counts()
        table = np.full(max(counts.max(initial=0), *classes) + 1, -1)
        table[list(classes)] = np.arange(len(classes))
        labels: NDArray[np.int64] = table[counts]
        if (labels < 0).any():
            self.labels([int(np.argmin(labels))], classes)
        return labels

    def _all_counts(self) -> NDArray[np.int64]:
        import numpy as np

        table = self._catalog(["split", "shard", "position", "count"])
        counts = np.full(sum(shard.samples for shard in self._shards), -1)
        counts[self._rows_of(table)] = table["count"].to_numpy()
        if self._rows is not None:
            counts = counts[self._rows]
        if (counts < 0).any():
            raise WorkError(
                f"{self._place}/{CATALOG}: does not list the sample "
                f"{self.id(int(np.argmin(counts)))}; "
                f"`bintally verify {self._place}` lists all damage"
            )
        return counts

    def _select(self, where: str) -> tuple[NDArray[np.int64], dict[str, int]]:
        """Which of the split's samples an expression means, ascending, and how many by count."""
        import numpy as np

        table = select(self._catalog(None), where)
        counts = table["count"].value_counts().to_pylist()
        return np.sort(self._rows_of(table)), {str(c["values"]): c["counts"] for c in counts}

    def _catalog(self, columns: list[str] | None) -> pa.Table:
        """The split's part of the catalog."""
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        table = pq.read_table(io.BytesIO(self._place.get(CATALOG)), columns=columns)
        return table.filter(pc.equal(table["split"], self.split))

    def _rows_of(self, table: pa.Table) -> NDArray[np.int64]:
        """Where the samples of rows of the catalog are among all of the split's."""
        import numpy as np

        first_of = dict(
            zip((shard.path for shard in self._shards), self._begins.tolist(), strict=True)
        )
        paths = table["shard"].to_pylist()
        if strange := {*paths} - first_of.keys():
            raise WorkError(
                f"{self._place}/{CATALOG}: names the shard {strange.pop()}, which the dataset does "
                f"not have; `bintally verify {self._place}` lists all damage"
            )
        rows = np.array([first_of[path] for path in paths], np.int64)
        rows += table["position"].to_numpy()
        return rows

    def _shard(self, index: int) -> int:
        return int(self._ends.searchsorted(index, side="right"))

    def _one(self, index: int) -> tuple[NDArray[np.uint8], int, str]:
        import numpy as np

        return next(self.read(np.array([index])))

    def _index(self, shard: int) -> ShardIndex:
        """Read when its shard is entered; those used last are kept."""
        found = self._indexes.get(shard)
        if found is None:
            found = self._indexes[shard] = self._read_index(shard)
            if len(self._indexes) > INDEXES_KEPT:
                self._indexes.popitem(last=False)
        return found

    def _read_index(self, number: int) -> ShardIndex:
        shard = self._shards[number]
        try:
            return read_shard_index(self._tars.index(number), shard.samples, LABEL)
        except (OSError, ValueError) as error:
            raise WorkError(
                f"{self._place}/{shard.index}: the index cannot be read: {error}; "
                f"`bintally verify {self._place}` lists all damage"
            ) from error
