"""One shard's job: fetch its photos, check them, write tar and index. The unit of all parallelism.

A job knows all that it needs and shares nothing, so it runs in any process on any machine, and
again after a crash, with the same bytes for result.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bintally.dataset.index import format_index
from bintally.dataset.manifest import Shard
from bintally.dataset.photo import BadPhoto, Photo
from bintally.errors import WorkError
from bintally.storage.lease import Lease
from bintally.storage.place import Entry, ObjectRefused, Place
from sharding.source.fetch import fetch
from sharding.source.rows import SampleJson
from sharding.tar import TarBuilder
from sharding.threads import map_in_threads

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MAX_BYTES", "RECORDS", "ShardJob", "ShardRecord", "record_path", "written_schema"]

RECORDS = ".build"
"""Where an unfinished build keeps what it needs to go on; gone when the dataset is complete."""


def written_schema() -> pa.Schema:
    """What the catalog is to say of each photo of a shard: `crc32` is null for those that are not
    in it, and `reason` says why."""
    import pyarrow as pa

    return pa.schema(
        [
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("crc32", pa.uint32()),
            ("reason", pa.string()),
        ]
    )


@dataclass(frozen=True)
class ShardRecord:
    """What a job writes, and what that adds to the catalog. Written first: whatever lies where it
    says is ours, and is done if it is as large as it says."""

    shard: Shard
    photos: pa.RecordBatch
    """The photos that were to be in the tar, in its order: columns as in `written_schema`."""

    def to_bytes(self) -> bytes:
        import pyarrow as pa

        about = {SHARD: json.dumps(vars(self.shard))}
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, self.photos.schema.with_metadata(about)) as writer:
            writer.write_batch(self.photos)
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> ShardRecord:
        """Raises `ValueError` for what is none."""
        import pyarrow as pa

        with pa.ipc.open_file(pa.py_buffer(data)) as reader:
            about = json.loads((reader.schema.metadata or {})[SHARD.encode()])
            return cls(Shard(**about), reader.get_batch(0).replace_schema_metadata(None))


SHARD = "shard"


def record_path(shard: str) -> str:
    """Where the record of the shard at a path lies, below the dataset's place."""
    return f"{RECORDS}/{shard.rpartition('/')[2].removesuffix('.tar')}.arrow"


@dataclass(frozen=True)
class ShardJob:
    """A shard to write, whole and by itself."""

    path: str
    index: str
    photos: pa.Table
    """Its photos in the tar's order: `id`, `label` (what its `.cls` is to hold), and as listed
    `path`, `bytes` and `version`."""
    metadata: SampleJson
    source: Place
    lease: Lease
    """The right to write to the destination."""
    connections: int
    """Requests in flight."""
    prepare: Callable[[bytes], Photo]
    """Makes of a photo what is stored; raises `BadPhoto`."""

    def run(self) -> ShardRecord:
        """Writes the record that says what is to come, the tar, and its index.

        Raises `WorkError` where none of its photos could be had: a shard is a fair draw of the
        source, so it is the source that is out of reach, and not these.
        """
        import pyarrow as pa

        tar = TarBuilder()
        written: list[dict[str, object]] = []
        counts = Counter[str]()
        ids, labels = (self.photos[name].to_pylist() for name in ("id", "label"))
        unread = []
        numbers = range(len(ids))
        for number, files in zip(
            numbers, map_in_threads(self._fetch, numbers, self.connections), strict=True
        ):
            if isinstance(files, Exception):
                written.append({"reason": str(files)})
                unread += [str(files)] * isinstance(files, ObjectRefused)
                continue
            photo, metadata = files
            label = labels[number]
            contents = [("jpg", photo.data), ("cls", label.encode()), ("json", metadata)]
            crc = tar.add(ids[number], contents)
            written.append(
                {"width": photo.width, "height": photo.height, "crc32": crc, "reason": photo.note}
            )
            counts[label] += 1
        if len(unread) == len(ids) >= A_FAIR_DRAW:
            raise WorkError(
                f"{self.source}: none of the {len(unread):,} photos of {self.path} can be had; "
                f"{unread[0]}"
            )
        pieces = tar.finish()
        sha256 = hashlib.sha256()
        for piece in pieces:
            sha256.update(piece)
        shard = Shard(
            self.path,
            self.index,
            counts.total(),
            sum(map(len, pieces)),
            sha256.hexdigest(),
            {label: counts[label] for label in sorted(counts, key=int)},
        )
        schema = written_schema()
        columns = {name: [row.get(name) for row in written] for name in schema.names}
        record = ShardRecord(shard, pa.record_batch(columns, schema=schema))
        self.lease.put(record_path(self.path), record.to_bytes())
        if counts:  # An empty tar is no use to any reader.
            self.lease.put(self.path, *pieces)
            self.lease.put(self.index, format_index(tar.samples))
        return record

    def _fetch(self, number: int) -> tuple[Photo, bytes] | BadPhoto | ObjectRefused:
        """A photo fit for the shard and its JSON, or the reason why they are not."""
        row = self.photos.slice(number, 1).to_pylist()[0]
        entry = Entry(row["path"], row["bytes"], row["version"])
        if entry.size_bytes > MAX_BYTES:
            return BadPhoto(f"photo has {entry.size_bytes:,} bytes, more than {MAX_BYTES:,}")
        try:
            return self.prepare(fetch(self.source, entry)), self.metadata.get(number)
        except (BadPhoto, ObjectRefused) as error:
            return error


MAX_BYTES = 256_000_000
"""More than 50 megapixels can take as a JPEG. Dozens of photos are in memory at a time."""
A_FAIR_DRAW = 20
"""So many photos, drawn at random, are not out of reach by chance."""
