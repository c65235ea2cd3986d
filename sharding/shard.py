"""One shard's job: fetch its photos, check them, write tar and index. The unit of all parallelism.

A job knows all that it needs and shares nothing, so it runs in any process on any machine, and
again after a crash, with the same bytes for result.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from bintally.dataset.index import format_index
from bintally.dataset.manifest import Shard
from bintally.dataset.photo import BadPhoto, Photo, Resize, prepare_photo
from bintally.errors import WorkError
from bintally.storage.lease import Lease
from bintally.storage.place import Entry, ObjectChanged, ObjectRefused, Place
from sharding.planning.plan import PlannedShard
from sharding.source.metadata import parse_metadata
from sharding.tar import TarBuilder
from sharding.threads import map_in_threads

__all__ = ["MAX_BYTES", "RECORDS", "ShardJob", "ShardRecord", "Written", "record_path"]

RECORDS = ".build"
"""Where an unfinished build keeps what it needs to go on; gone when the dataset is complete."""


@dataclass(frozen=True)
class Written:
    """A sample in the tar, and what the catalog is to say of it."""

    id: str
    width: int
    height: int
    crc32: int
    note: str | None


@dataclass(frozen=True)
class ShardRecord:
    """What a job writes, and what that adds to the catalog. Written first: whatever lies where it
    says is ours, and is done if it is as large as it says."""

    shard: Shard
    written: Sequence[Written]
    """The samples in the tar's order."""
    quarantined: Mapping[str, str]
    """Reasons by id."""

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> ShardRecord:
        value = json.loads(data)
        written = [Written(**sample) for sample in value["written"]]
        return cls(Shard(**value["shard"]), written, value["quarantined"])


def record_path(shard: PlannedShard) -> str:
    """Where a shard's record lies, below the dataset's place."""
    return f"{RECORDS}/{shard.path.rpartition('/')[2].removesuffix('.tar')}.json"


@dataclass(frozen=True)
class ShardJob:
    """A shard to write, whole and by itself."""

    shard: PlannedShard
    photos: Mapping[str, Entry]
    """Its photos by id, as they were listed."""
    metadata: Mapping[str, bytes]
    """The zlib-compressed JSON of its ids."""
    source: Place
    lease: Lease
    """The right to write to the destination."""
    connections: int
    """Requests in flight."""
    resize: Resize | None

    def run(self) -> ShardRecord:
        """Writes the record that says what is to come, the tar, and its index.

        Raises `WorkError` where none of its photos could be had: a shard is a fair draw of the
        source, so it is the source that is out of reach, and not these.
        """
        tar = TarBuilder()
        written, quarantined, counts = [], {}, Counter[int]()
        unread = 0
        photos = map_in_threads(self._fetch, self.shard.ids, self.connections)
        for id_, photo in zip(self.shard.ids, photos, strict=True):
            if not isinstance(photo, Photo):
                quarantined[id_] = str(photo)
                unread += isinstance(photo, ObjectRefused)
                continue
            metadata = zlib.decompress(self.metadata[id_])
            count = parse_metadata(metadata).count
            files = [("jpg", photo.data), ("cls", b"%d" % count), ("json", metadata)]
            crc = tar.add(id_, files)
            written.append(Written(id_, photo.width, photo.height, crc, photo.note))
            counts[count] += 1

        if unread == len(self.shard.ids) >= A_FAIR_DRAW:
            raise WorkError(
                f"{self.source}: none of the {unread:,} photos of {self.shard.path} can be had; "
                f"{next(iter(quarantined.values()))}"
            )
        pieces = tar.finish()
        sha256 = hashlib.sha256()
        for piece in pieces:
            sha256.update(piece)
        record = ShardRecord(
            Shard(
                self.shard.path,
                self.shard.index,
                len(written),
                sum(map(len, pieces)),
                sha256.hexdigest(),
                {str(count): counts[count] for count in sorted(counts)},
            ),
            written,
            quarantined,
        )
        self.lease.put(record_path(self.shard), record.to_json())
        if written:  # An empty tar is no use to any reader.
            self.lease.put(self.shard.path, *pieces)
            self.lease.put(self.shard.index, format_index(tar.samples))
        return record

    def _fetch(self, id_: str) -> Photo | BadPhoto | ObjectRefused:
        """A photo fit for the shard, or the reason why it is not."""
        entry = self.photos[id_]
        if entry.size_bytes > MAX_BYTES:
            return BadPhoto(f"photo has {entry.size_bytes:,} bytes, more than {MAX_BYTES:,}")
        try:
            return prepare_photo(self.source.fetch(entry), self.resize)
        except FileNotFoundError:
            return ObjectRefused(f"{entry.path}: vanished before it was fetched")
        except ObjectChanged:
            return ObjectRefused(f"{entry.path}: changed before it was fetched")
        except (BadPhoto, ObjectRefused) as error:
            return error


MAX_BYTES = 256_000_000
"""More than 50 megapixels can take as a JPEG. Dozens of photos are in memory at a time."""
A_FAIR_DRAW = 20
"""So many photos, drawn at random, are not out of reach by chance."""
