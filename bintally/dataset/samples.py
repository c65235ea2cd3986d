"""Samples of a split by index: photos as views of memory-mapped tars, nothing copied."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from bintally.dataset.labels import Classes, are_counts, read_label
from bintally.dataset.manifest import CATALOG, Dataset, open_tars
from bintally.dataset.shard_cache import ShardCache
from bintally.dataset.shard_files import CachedShards, FolderShards, ShardFiles, ShardSchedule
from bintally.dataset.shard_index import ShardIndex, read_shard_index
from bintally.dataset.where import select
from bintally.errors import UsageError, WorkError
from bintally.storage.folder import Folder
from bintally.storage.place import Place

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["Samples"]

CONNECTIONS = 16
"""Indexes fetched at a time, where all are."""
INDEXES_KEPT = 2048
OTHER, MISSING = -1, -2
"""What a label is that is none of the classes, and one that the catalog does not have."""


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
        self._place, self._dataset = place, dataset
        self._counted = are_counts(dataset.classes)
        self._shards = dataset.splits[split].shards
        tars = open_tars(place, dataset)
        if cache is not None:
            self._tars: ShardFiles = CachedShards(tars, place, self._shards, cache)
        elif isinstance(tars, Folder):
            self._tars = FolderShards(tars, place, self._shards)
        else:
            raise UsageError(f"{tars}: shards on S3 are read through a local --cache; name one")
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

    def read(
        self, indices: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.uint8], int | str, str]]:
        """Samples, one after the other: a photo's JPEG bytes, (size,) uint8, the number of items in
        the bin, or a name, and the id.

        Raises `WorkError` where the label is none any more.
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
            label = self._label(index, tar[at : at + length])
            view = np.frombuffer(tar, np.uint8, size, begin)
            # A view of a shard in a cache would keep it there as long as its batch is on its way.
            yield view if self._tars.lasting else view.copy(), label, found.ids[row]

    def id(self, index: int) -> str:
        """A sample's id."""
        shard = self._shard(index)
        row = index if self._rows is None else int(self._rows[index])
        return self._index(shard).ids[row - int(self._begins[shard])]

    def photo(self, index: int) -> NDArray[np.uint8]:
        """A photo's JPEG bytes: (size,) uint8."""
        return self._one(index)[0]

    def label(self, index: int) -> int | str:
        """The number of items in the bin, or a name. Raises `WorkError` where it is none any
        more."""
        return self._one(index)[1]

    def count(self, index: int) -> int:
        """The number of items in the bin, where labels are counts."""
        return int(self.label(index))

    def where(self, index: int) -> str:
        """How an error names a sample."""
        return f"{self._shards[self._shard(index)].path}: sample {self.id(index)}"

    def neighbour(self, index: int) -> int:
        """The next sample of the same shard, after the last one the first."""
        shard = self._shard(index)
        end = int(self._ends[shard])
        return end - int(self.sizes[shard]) if index + 1 == end else index + 1

    def labels(self, indices: Sequence[int] | NDArray[np.int64], classes: Classes) -> list[int]:
        """Class indices of samples: which of `classes` each label is.

        Raises `WorkError` for a label that is none of them.
        """
        index_of = {name: i for i, name in enumerate([*classes])}
        labels = []
        for index in indices:
            label = self.label(int(index))
            if label not in index_of:
                raise WorkError(
                    f"{self.where(int(index))}: its label {label} is none of the classes "
                    f"{classes[0]} to {classes[-1]}"
                )
            labels.append(index_of[label])
        return labels

    def all_labels(self, classes: Classes) -> NDArray[np.int64]:
        """(samples,) every sample's class index, by the dataset's catalog: no shard is read.

        Raises `WorkError` as `labels` does, and for a catalog that lacks a sample.
        """
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        table = self._catalog(["split", "shard", "position", self._label_column])
        column = table[self._label_column]
        found = pc.index_in(column, pa.array([*classes], column.type)).fill_null(OTHER)
        labels = np.full(sum(shard.samples for shard in self._shards), MISSING)
        labels[self._rows_of(table)] = found.to_numpy()
        if self._rows is not None:
            labels = labels[self._rows]
        if (labels == MISSING).any():
            raise WorkError(
                f"{self._place}/{CATALOG}: does not list the sample "
                f"{self.id(int(np.argmin(labels)))}; "
                f"`bintally verify {self._place}` lists all damage"
            )
        if (labels == OTHER).any():
            self.labels([int(np.argmin(labels))], classes)
        return labels

    def _select(self, where: str) -> tuple[NDArray[np.int64], dict[str, int]]:
        """Which of the split's samples an expression means, ascending, and how many by count."""
        import numpy as np

        table = select(self._catalog(None), where)
        counts = table[self._label_column].value_counts().to_pylist()
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
                f"{self._place}/{CATALOG}: names the shard {min(strange)}, which the dataset does "
                "not have; if a `bintally build --append` was interrupted, run it again, else "
                f"`bintally verify {self._place}` lists all damage"
            )
        rows = np.array([first_of[path] for path in paths], np.int64)
        rows += table["position"].to_numpy()
        return rows

    def _shard(self, index: int) -> int:
        return int(self._ends.searchsorted(index, side="right"))

    @property
    def _label_column(self) -> str:
        return "count" if self._counted else "label"

    def _label(self, index: int, data: bytes) -> int | str:
        try:
            label = read_label(data, self._dataset.label)
            if self._counted and not isinstance(label, int):
                raise ValueError("is no number")
        except ValueError as error:
            raise WorkError(
                f"{self.where(index)}: its label {error}; it was one when it was written: "
                "`bintally verify` lists all damage"
            ) from error
        return label if self._counted else str(label)

    def _one(self, index: int) -> tuple[NDArray[np.uint8], int | str, str]:
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
            data = self._tars.index(number)
            found = read_shard_index(data, shard.samples, self._dataset.label)
            ids = [self._dataset.sample_id(shard, key) for key in found.ids]
            return replace(found, ids=ids)
        except (OSError, ValueError) as error:
            raise WorkError(
                f"{self._place}/{shard.index}: the index cannot be read: {error}; "
                f"`bintally verify {self._place}` lists all damage"
            ) from error
