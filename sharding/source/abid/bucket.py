"""A bucket in ABID's layout: `bin-images/<id>.jpg`, and beside each photo `metadata/<id>.json`."""

from __future__ import annotations

import hashlib
import posixpath
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bintally.dataset.catalog import conform
from bintally.errors import UsageError, WorkError
from bintally.storage.place import Entry, Place
from bintally.terminal.progress import Progress
from sharding.columns import rows_at, sorted_by_id
from sharding.distribute import Distributor
from sharding.source.abid.metadata_cache import CHUNK, Chunk, kept_file, read_kept
from sharding.source.abid.metadata_job import MetadataJob, parsed_schema
from sharding.source.fetch import fetch
from sharding.source.ids import NOT_UTF8, OTHER_IMAGES
from sharding.source.rows import SourceRows, source_schema
from sharding.tar import LONGEST_ID

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["IMAGES", "METADATA", "is_abid", "read_abid"]

IMAGES = "bin-images"
METADATA = "metadata"


def is_abid(listing: pa.Table) -> bool:
    """Whether the objects of a source are laid out as ABID's are."""
    import pyarrow.compute as pc

    own = pc.match_substring_regex(listing["path"], rf"^({IMAGES}|{METADATA})/")
    return bool(pc.any(own).as_py())


def read_abid(
    source: Place, listing: pa.Table, distributor: Distributor, connections: int
) -> SourceRows:
    """Reads all of the metadata of a bucket in ABID's layout, whose objects `listing` holds.

    `distributor` runs the jobs that read, with `connections` requests in flight in all.

    Raises `UsageError` where the source holds no photos, `WorkError` where of its metadata nothing
    can be had. What is odd about single objects is in their rows.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    photos, foreign = _named(listing, IMAGES, ".jpg")
    metadata, more = _named(listing, METADATA, ".json")
    del listing  # Here and below: columns of all rows are let go as soon as they have been used.
    identity: dict[str, Any] = {"images": len(photos), "metadata": len(metadata)}
    if not len(photos) + len(metadata):
        raise UsageError(
            f"{source}: no photos here; a bucket has {IMAGES}/<id>.jpg and {METADATA}/<id>.json"
        )
    table = _pair(photos, metadata)
    del photos
    ids = table["id"].filter(pc.equal(table["status"], "sharded"))
    listed = rows_at(metadata, pc.index_in(ids, metadata["id"]))
    del metadata
    # Gone with the rows, at the latest when the process ends.
    aside = tempfile.TemporaryDirectory(prefix="bintally-metadata-")
    parsed, kept = _read_metadata(source, listed, distributor, connections, Path(aside.name))
    unread = parsed["reason"].filter(pc.is_null(parsed["sha256"]))
    if len(unread) and len(unread) == len(parsed):
        raise WorkError(
            f"{source}: none of the {len(unread):,} metadata files can be had; {unread[0]}"
        )
    # From here on all rows, those without metadata with nothing.
    place = pc.index_in(table["id"], ids)
    complaint = parsed["reason"].take(place)
    columns = {
        "count": parsed["count"].take(place),
        "skus": parsed["skus"].take(place),
        "status": pc.if_else(pc.is_valid(complaint), "quarantined", table["status"]),
        "reason": pc.coalesce(complaint, table["reason"]),
    }
    sha256, end = parsed["sha256"], parsed["end"].fill_null(0).to_numpy()
    del parsed, complaint
    names = source_schema().names
    table = pa.table({name: columns.get(name, table[name]) for name in names})
    if len(foreign) + len(more):
        others = _foreign_rows(pa.concat_tables([foreign, more]))
        table = sorted_by_id(pa.concat_tables([table, others]))
    identity["sha256"] = _digest(sha256, table)
    place = pc.index_in(table["id"], ids).fill_null(-1).to_numpy()
    json = _Metadata(source, listed, aside, kept, end, place)
    return SourceRows(table, json, identity, around_id=(f"{IMAGES}/", ".jpg"))


def _named(listing: pa.Table, folder: str, suffix: str) -> tuple[pa.Table, pa.Table]:
    """The objects of a folder that are named `<id>` and the suffix, with their ids, and those that
    are not."""
    import pyarrow as pa
    import pyarrow.compute as pc

    path = listing["path"]
    inside = pc.starts_with(path, f"{folder}/")
    own = pc.match_substring_regex(path, rf"(?s)^{folder}/[^/]+{re.escape(suffix)}$")
    own = pc.and_(own, pc.is_valid(listing["version"]))
    columns = {
        "id": pc.utf8_slice_codeunits(path.filter(own), len(folder) + 1, -len(suffix)),
        "bytes": listing["bytes"].filter(own),
        "version": listing["version"].filter(own),
    }
    return pa.table(columns).combine_chunks(), listing.filter(pc.and_not(inside, own))


def _pair(photos: pa.Table, metadata: pa.Table) -> pa.Table:
    """A row for each id, with what its photo and its metadata's being there say of it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    both = pa.chunked_array([*photos["id"].chunks, *metadata["id"].chunks]).unique()
    ids = both.take(pc.sort_indices(both))
    of_photo = pc.index_in(ids, photos["id"])
    no_photo = pc.is_null(of_photo)
    no_metadata = pc.is_null(pc.index_in(ids, metadata["id"]))

    def named(folder: str, suffix: str) -> pa.Array:
        return pc.binary_join_element_wise(folder, ids, suffix, "")

    status = pc.if_else(no_metadata, "orphan-image", "sharded")
    status = pc.if_else(no_photo, "orphan-metadata", status)
    nothing = pa.nulls(len(ids), pa.string())
    reason = pc.if_else(no_metadata, named(f"no {METADATA}/", ".json"), nothing)
    reason = pc.if_else(no_photo, named(f"no {IMAGES}/", ".jpg"), reason)
    odd = pc.and_(pc.equal(status, "sharded"), pc.invert(pc.match_substring_regex(ids, FLAT)))
    complaints = pa.array([_unusable(id_) for id_ in ids.filter(odd).to_pylist()], pa.string())
    columns = {
        "id": ids,
        "bytes": photos["bytes"].take(of_photo),
        "version": photos["version"].take(of_photo),
        "status": pc.if_else(odd, "quarantined", status),
        "reason": pc.replace_with_mask(reason, odd, complaints),
    }
    return conform(pa.table(columns), source_schema())


FLAT = rf"^[!-\-/-~]{{1,{LONGEST_ID}}}$"
"""An id that can be the name of a sample: printable ASCII without a space or a dot."""


def _unusable(id_: str) -> str:
    """Why an id cannot be the name of a sample."""
    if "." in id_:
        return "id has a dot, and WebDataset takes what follows the first dot for the extension"
    if not id_.isascii() or not id_.isprintable() or " " in id_:
        return "id has characters that a DALI index cannot hold"
    return f"id is longer than {LONGEST_ID} characters"


def _read_metadata(
    source: Place, listed: pa.Table, distributor: Distributor, connections: int, aside: Path
) -> tuple[pa.Table, list[str | None]]:
    """What metadata files hold, and which chunks of them this machine has kept: what was kept is
    taken, the rest fetched and kept."""
    import numpy as np
    import pyarrow as pa

    def chunk(number: int) -> Chunk:
        rows = np.arange(CHUNK * number, min(CHUNK * (number + 1), len(listed)))
        return Chunk(number, _files_at(listed, rows).to_batches()[0])

    numbers = range(-(-len(listed) // CHUNK))
    batches: list[pa.RecordBatch | None] = []
    kept: list[str | None] = []
    with Progress("metadata", len(listed), "files") as progress:
        for some in map(chunk, numbers):
            batch = read_kept(some, parsed_schema())
            batches.append(batch)
            kept.append(None if batch is None else some.stem)
            progress.update(0 if batch is None else len(batch))
        missing = [number for number in numbers if batches[number] is None]
        at_a_time = min(distributor.workers, max(1, len(missing)))
        each = max(1, connections // at_a_time)
        jobs = (MetadataJob(source, chunk(number), each, aside) for number in missing)
        for number, batch, stem in distributor.run(jobs):
            # A copy in Arrow's memory. What comes from another process is Python's bytes, between
            # which gaps would stay.
            batches[number], kept[number] = batch.take(np.arange(len(batch))), stem
            progress.update(len(batch))
    return pa.Table.from_batches(batches, parsed_schema()), kept


def _files_at(listed: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """Some of the metadata files: their `path`, `bytes` and `version`."""
    import pyarrow.compute as pc

    some = rows_at(listed, rows)
    path = pc.binary_join_element_wise(f"{METADATA}/", some["id"], ".json", "")
    return some.set_column(0, "path", path)


@dataclass(frozen=True)
class _Metadata:
    """The metadata files, of which each sample gets its own, byte for byte."""

    source: Place
    listed: pa.Table
    aside: tempfile.TemporaryDirectory[str]
    kept: Sequence[str | None]
    end: NDArray[np.int32]
    """Where each of the listed files ends among those of its chunk that are kept."""
    place: NDArray[np.int64]
    """Of a row, which of the listed files is its."""

    def take(self, rows: NDArray[np.int64]) -> _Files:
        places = self.place[rows]
        kept = [
            (self.kept[place // CHUNK], int(self.end[place - 1] if place % CHUNK else 0), end)
            for place, end in zip(places, self.end[places].tolist(), strict=True)
        ]
        return _Files(self.source, _files_at(self.listed, places), kept)


@dataclass(frozen=True)
class _Files:
    """The metadata files of a shard."""

    source: Place
    listed: pa.Table
    kept: Sequence[tuple[str | None, int, int]]

    def get(self, number: int) -> bytes:
        stem, begin, end = self.kept[number]
        data = None if stem is None else kept_file(stem, begin, end)
        if data is None:
            row = self.listed.slice(number, 1).to_pylist()[0]
            data = fetch(self.source, Entry(*row.values()))
        return data


def _foreign_rows(objects: pa.Table) -> pa.Table:
    """Rows for what is neither a photo nor metadata."""
    import pyarrow as pa

    rows = [
        {
            "id": row["path"],
            "bytes": row["bytes"],
            "status": "quarantined",
            "reason": NOT_UTF8 if row["version"] is None else _why_foreign(row["path"]),
        }
        for row in sorted(objects.to_pylist(), key=itemgetter("path"))
    ]
    return pa.Table.from_pylist(rows, source_schema())


def _why_foreign(path: str) -> str:
    """Why an object is neither a photo nor metadata."""
    kind = OTHER_KINDS.get(posixpath.splitext(path)[1].lower().removeprefix("."))
    if kind is not None:
        return f"named as a {kind}; a photo is a JPEG named {IMAGES}/<id>.jpg"
    return f"not named {IMAGES}/<id>.jpg or {METADATA}/<id>.json"


OTHER_KINDS = {**OTHER_IMAGES, "png": "PNG", "webp": "WebP"}


AT_A_TIME = 2**16
"""Rows that are Python's objects."""


def _digest(metadata: pa.ChunkedArray, table: pa.Table) -> str:
    """Of all that decides a dataset: what metadata files hold, and each object's size and fate."""
    import pyarrow as pa
    import pyarrow.compute as pc

    digest = hashlib.sha256()
    for chunk in metadata.chunks:
        known = chunk.drop_null()
        whole, size = memoryview(known.buffers()[1] or b""), known.type.byte_width
        digest.update(whole[size * known.offset :][: size * len(known)])
    for start in range(0, len(table), AT_A_TIME):
        part = table.slice(start, AT_A_TIME)
        size = pc.coalesce(part["bytes"].cast(pa.string()), "None")
        lines = pc.binary_join_element_wise(part["id"], size, part["status"], " ")
        digest.update("\n".join([*lines.to_pylist(), ""]).encode())
    return digest.hexdigest()
