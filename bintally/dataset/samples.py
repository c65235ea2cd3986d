"""Samples of a split by index: photos as views of memory-mapped tars, nothing copied."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from bintally.dataset.index import parse_index
from bintally.dataset.labels import (
    Classes,
    are_counts,
    class_of,
    label_component,
    photo_component,
    read_label,
)
from bintally.dataset.manifest import CATALOG, Dataset, Shard, open_tars
from bintally.dataset.shard_cache import ShardCache
from bintally.dataset.shard_files import CachedShards, FolderShards, ShardFiles
from bintally.dataset.where import select
from bintally.errors import UsageError, WorkError
from bintally.storage.folder import Folder
from bintally.storage.place import Place

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["Samples"]

PARTS = ("jpg", "cls", "json")
"""What a sample has, in this order."""
COLUMNS = [f"{part} {column}" for part in PARTS for column in ("type", "offset", "size", "name")]
CONNECTIONS = 16
"""Indexes fetched at a time."""


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
        tars = open_tars(place, dataset)
        if isinstance(tars, Folder):
            self._tars: ShardFiles = FolderShards(tars, self._shards)
        elif cache is not None:
            self._tars = CachedShards(tars, self._shards, cache)
        else:
            raise UsageError(f"{tars}: shards on S3 are read through a local --cache; name one")
        index = (
            _read_adopted(place, dataset, self._shards)
            if dataset.is_adopted
            else _read_indexes(place, self._shards)
        )
        self._rule, self._counted = dataset.label, are_counts(dataset.classes)
        self.shards: NDArray[np.int64] = np.repeat(
            np.arange(len(self._shards)), [shard.samples for shard in self._shards]
        )
        """(samples,) which shard of the split each sample is in."""
        self.identity = dataset.sha256 if where is None else f"{dataset.sha256} where {where}"
        """The dataset's, and the part of it that was asked for."""
        self.class_counts = dataset.splits[split].class_counts
        """How many samples have each count."""
        self._rows: NDArray[np.int64] | None = None
        """Which of the split's samples these are, where they are not all of them."""
        if where is not None:
            rows, counts = self._select(where)
            self._rows, self.shards = rows, self.shards[rows]
            self.class_counts = {str(count): 0 for count in dataset.classes} | counts
            index = index.take(rows)
        self.ids: list[str] = (
            index["id"].to_pylist()
            if dataset.is_adopted
            else [name[:-4] for name in index["jpg name"].to_pylist()]
        )
        self._at = {
            column: index[column].to_numpy()
            for column in ("jpg offset", "jpg size", "cls offset", "cls size")
        }

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def windows(self) -> tuple[NDArray[np.int64], int] | None:
        """What `epoch_order` has to know where not all shards are at hand at a time."""
        return None if self._tars.window is None else (self.shards, self._tars.window)

    def follow(self, order: NDArray[np.int64], *, check: bool = False) -> None:
        """Says in which order samples are about to be asked for; an empty one ends it.

        With `check`, `settle` says whether their shards are what was written.
        """
        import numpy as np

        shards, first = np.unique(self.shards[order], return_index=True)
        self._tars.follow(shards[np.argsort(first)].tolist(), check=check)

    def settle(self) -> None:
        """Returns when all that had to be checked has been. Raises `WorkError`, naming a shard
        that is not what was written."""
        self._tars.settle()

    def photo(self, index: int) -> NDArray[np.uint8]:
        """A photo's JPEG bytes: (size,) uint8."""
        return self._part("jpg", index)

    def label(self, index: int) -> int | str:
        """The number of items in the bin, or a name. Raises `WorkError` where it is none any
        more."""
        try:
            label = read_label(self._part("cls", index).tobytes(), self._rule)
        except ValueError as error:
            raise WorkError(
                f"{self.where(index)}: its label {error}; it was one when it was written: "
                "`bintally verify` lists all damage"
            ) from error
        if self._counted and not isinstance(label, int):
            raise WorkError(
                f"{self.where(index)}: its count is no number; it was one when it was written: "
                "`bintally verify` lists all damage"
            )
        return label if self._counted else str(label)

    def count(self, index: int) -> int:
        """The number of items in the bin, where labels are counts."""
        return int(self.label(index))

    def where(self, index: int) -> str:
        """How an error names a sample."""
        return f"{self._shards[self.shards[index]].path}: sample {self.ids[index]}"

    def neighbour(self, index: int) -> int:
        """The next sample of the same shard, after the last one the first."""
        shard = self.shards[index]
        at_end = index + 1 == len(self) or self.shards[index + 1] != shard
        return int(self.shards.searchsorted(shard)) if at_end else index + 1

    def labels(self, indices: Sequence[int] | NDArray[np.int64], classes: Classes) -> list[int]:
        """Class indices of samples: which of `classes` each count is.

        Raises `WorkError` for a count that is none of them.
        """
        names: Sequence[int | str] = classes
        index_of = {name: i for i, name in enumerate(names)}
        labels = []
        for index in indices:
            label = self.label(int(index))
            number = class_of(label, index_of)
            if number is None:
                raise WorkError(
                    f"{self.where(int(index))}: its count {label} is none of the classes "
                    f"{classes[0]} to {classes[-1]}"
                )
            labels.append(number)
        return labels

    def all_labels(self, classes: Classes) -> NDArray[np.int64]:
        """(samples,) every sample's class index, by the dataset's catalog: no shard is read.

        Raises `WorkError` as `labels` does, and for a catalog that lacks a sample.
        """
        import numpy as np

        if not self._counted:
            # By the tars, until all labels are read from the catalog's column.
            return np.array(self.labels(range(len(self)), classes), np.int64)
        counts = self._all_counts()
        table = np.full(max(counts.max(initial=0), *map(int, classes)) + 1, -1)
        table[[int(count) for count in classes]] = np.arange(len(classes))
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
                f"{self.ids[int(np.argmin(counts))]}; "
                f"`bintally verify {self._place}` lists all damage"
            )
        return counts

    def _select(self, where: str) -> tuple[NDArray[np.int64], dict[str, int]]:
        """Which of the split's samples an expression means, ascending, and how many by count."""
        import numpy as np

        table = select(self._catalog(None), where)
        counts = table["count" if self._counted else "label"].value_counts().to_pylist()
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

        first_of, first = {}, 0
        for shard in self._shards:
            first_of[shard.path] = first
            first += shard.samples
        paths = table["shard"].to_pylist()
        if strange := {*paths} - first_of.keys():
            raise WorkError(
                f"{self._place}/{CATALOG}: names the shard {strange.pop()}, which the dataset does "
                f"not have; `bintally verify {self._place}` lists all damage"
            )
        rows = np.array([first_of[path] for path in paths], np.int64)
        rows += table["position"].to_numpy()
        return rows

    def _part(self, part: str, index: int) -> NDArray[np.uint8]:
        import numpy as np

        begin = int(self._at[f"{part} offset"][index])
        size = int(self._at[f"{part} size"][index])
        tar = self._tars.open(int(self.shards[index]))
        view = np.frombuffer(tar, np.uint8, size, begin)
        # A view of a shard in a cache would keep it there as long as its batch is on its way.
        return view if self._tars.window is None else view.copy()


def _read_indexes(place: Place, shards: Sequence[Shard]) -> pa.Table:
    """The lines of all indexes, one after the other.

    All of them at once, for 535 of a thousand samples each are parsed so in a fraction of a second.
    """
    import pyarrow as pa
    from pyarrow import csv

    def read(shard: Shard) -> bytes:
        data = place.get(shard.index)
        header, _, lines = data.partition(b"\n")
        if header.split() != [b"v1.2", b"%d" % shard.samples]:
            raise ValueError(f"is not the index of {shard.samples:,} samples")
        if lines.count(b"\n") != shard.samples:
            raise ValueError("is cut short")
        return lines

    bodies = []
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for shard, future in [(shard, pool.submit(read, shard)) for shard in shards]:
            try:
                bodies.append(future.result())
            except (OSError, ValueError) as error:
                raise _bad_index(place, shard, error) from error
    types = [pa.string(), pa.int64(), pa.int64(), pa.string()] * len(PARTS)
    schema = pa.schema(list(zip(COLUMNS, types, strict=True)))
    if not bodies:
        return schema.empty_table()
    try:
        return csv.read_csv(
            io.BytesIO(b"".join(bodies)),
            csv.ReadOptions(column_names=COLUMNS),
            csv.ParseOptions(delimiter=" ", quote_char=False),
            csv.ConvertOptions(column_types=schema, strings_can_be_null=False),
        )
    except pa.ArrowInvalid:
        # Which one is it?
        for shard in shards:
            try:
                parse_index(place.get(shard.index))
            except ValueError as error:
                raise _bad_index(place, shard, error) from error
        raise


def _read_adopted(place: Place, dataset: Dataset, shards: Sequence[Shard]) -> pa.Table:
    """The lines of all indexes of tars that others wrote, with the columns that are used."""
    import pyarrow as pa

    rows = []
    for shard in shards:
        try:
            samples = parse_index(place.get(shard.index))
            if len(samples) != shard.samples:
                raise ValueError(f"is not the index of {shard.samples:,} samples")
            for sample in samples:
                photo = photo_component(sample.components)
                label = label_component(sample.components, dataset.label)
                if photo is None or label is None:
                    raise ValueError(f"sample {sample.id} lacks its photo or label")
                row = [dataset.sample_id(shard, sample.id), photo.offset, photo.size]
                rows.append((*row, label.offset, label.size))
        except (OSError, ValueError) as error:
            raise _bad_index(place, shard, error) from error
    names = ["id", "jpg offset", "jpg size", "cls offset", "cls size"]
    types = [pa.string(), *[pa.int64()] * 4]
    columns = [*zip(*rows, strict=True)] or [()] * 5
    return pa.table({n: pa.array(c, t) for n, c, t in zip(names, columns, types, strict=True)})


def _bad_index(place: Place, shard: Shard, reason: Exception) -> WorkError:
    return WorkError(
        f"{place}/{shard.index}: the index cannot be read: {reason}; "
        f"`bintally verify {place}` lists all damage"
    )
