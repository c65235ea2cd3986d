"""The catalog: one row per object of the source, with what became of it."""

from __future__ import annotations

import hashlib
import posixpath
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bintally.dataset.catalog import CatalogRow
from bintally.errors import UsageError, WorkError
from bintally.storage.place import Entry, Place
from bintally.terminal.progress import Progress
from sharding.distribute import Distributor
from sharding.source.metadata_cache import CHUNK, read_chunk, write_chunk
from sharding.source.metadata_job import MetadataJob, ParsedMetadata, Unread
from sharding.tar import LONGEST_ID

if TYPE_CHECKING:
    pass

__all__ = ["IMAGES", "METADATA", "Catalog", "read_source"]

IMAGES = "bin-images"
METADATA = "metadata"


@dataclass
class Catalog:
    """The rows, by id ascending, and what was read with them."""

    rows: list[CatalogRow]
    source: dict[str, Any]
    """The source's identity: numbers of objects, and a digest of their names, sizes and metadata.
    It has no address in it, so that a bucket and its copy in a folder give equal datasets."""
    metadata: dict[str, bytes]
    """The JSON of every good row by id, zlib-compressed: it is fetched once."""
    photos: dict[str, Entry]
    """The photos as they were listed, by id."""

    def statuses(self) -> Counter[str]:
        """How many rows have each status."""
        return Counter(row.status for row in self.rows)


def read_source(source: Place, distributor: Distributor, connections: int) -> Catalog:
    """Lists a bucket in ABID's layout and reads all of its metadata.

    `distributor` runs the jobs that read, with `connections` requests in flight in all.

    Raises `UsageError` where the source is not there or holds no photos, `WorkError` where of its
    metadata nothing can be had. What is odd about single objects is in their rows.
    """
    source.check()
    with ThreadPoolExecutor(2) as pool:
        listings = pool.map(_list_ids, [source] * 2, (IMAGES, METADATA), (".jpg", ".json"))
        (photos, foreign), (metadata, more) = listings
    foreign.update(more)
    if not photos and not metadata:
        raise UsageError(
            f"{source}: no photos here; a bucket has {IMAGES}/<id>.jpg and {METADATA}/<id>.json"
        )
    rows = {id_: CatalogRow(id_) for id_ in photos.keys() | metadata.keys()}
    for id_, row in rows.items():
        if id_ in photos:
            row.bytes = photos[id_].size_bytes
        if id_ not in metadata:
            row.put_aside("orphan-image", f"no {METADATA}/{id_}.json")
        elif id_ not in photos:
            row.put_aside("orphan-metadata", f"no {IMAGES}/{id_}.jpg")
        elif (complaint := _unusable(id_)) is not None:
            row.put_aside("quarantined", complaint)
    for path, entry in foreign.items():
        rows[path] = CatalogRow(_as_text(path), bytes=entry.size_bytes)
        rows[path].put_aside("quarantined", _why_foreign(path))

    # Where a name that is not UTF-8 is written as one that is, the other decides.
    ordered = [rows[name] for name in sorted(rows, key=lambda name: (rows[name].id, name))]
    catalog = Catalog(ordered, {}, {}, photos)
    digest = hashlib.sha256()
    paired = [row for row in catalog.rows if row.status == "sharded"]
    entries = [metadata[row.id] for row in paired]
    found = _read_metadata(source, entries, distributor, connections)
    unread = [answer for answer in found.values() if isinstance(answer, Unread)]
    if unread and len(unread) == len(found):
        raise WorkError(
            f"{source}: none of the {len(unread):,} metadata files can be had; {unread[0].reason}"
        )
    for row, entry in zip(paired, entries, strict=True):
        parsed = found[entry.path]
        if isinstance(parsed, Unread):
            row.put_aside("quarantined", parsed.reason)
            continue
        digest.update(parsed.sha256)
        if parsed.reason is not None:
            row.put_aside("quarantined", parsed.reason)
        else:
            row.count, row.skus = parsed.count, parsed.skus
            catalog.metadata[row.id] = parsed.data
    for row in catalog.rows:
        digest.update(f"{row.id} {row.bytes} {row.status}\n".encode())
    catalog.source = {
        "images": len(photos),
        "metadata": len(metadata),
        "sha256": digest.hexdigest(),
    }
    return catalog


def _read_metadata(
    source: Place, entries: Sequence[Entry], distributor: Distributor, connections: int
) -> dict[str, ParsedMetadata | Unread]:
    """What metadata files hold, by path: what was kept is taken, the rest fetched and kept."""
    found: dict[str, ParsedMetadata | Unread] = {}
    missing = []
    with Progress("metadata", len(entries), "files") as progress:
        for start in range(0, len(entries), CHUNK):
            chunk = entries[start : start + CHUNK]
            kept = read_chunk(chunk)
            if kept is None:
                missing.append(chunk)
            else:
                found.update((parsed.path, parsed) for parsed in kept)
                progress.update(len(chunk))
        at_a_time = min(distributor.workers, max(1, len(missing)))
        jobs = [MetadataJob(source, chunk, max(1, connections // at_a_time)) for chunk in missing]
        for chunk, answers in distributor.run(jobs):
            whole = [answer for answer in answers if isinstance(answer, ParsedMetadata)]
            if len(whole) == len(chunk):
                write_chunk(chunk, whole)
            found.update((e.path, answer) for e, answer in zip(chunk, answers, strict=True))
            progress.update(len(chunk))
    return found


def _list_ids(source: Place, folder: str, suffix: str) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """The objects named `folder/<id>suffix` by id, and those that are not by path."""
    ids, foreign = {}, {}
    for entry in source.entries(folder):
        name = entry.path.removeprefix(f"{folder}/")
        named = name.endswith(suffix) and "/" not in name and name != suffix
        if named and _as_text(name) == name:
            ids[name.removesuffix(suffix)] = entry
        else:
            foreign[entry.path] = entry
    return ids, foreign


def _as_text(name: str) -> str:
    """A name with what in it is not UTF-8 written out: a folder's files may be called anything."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _why_foreign(path: str) -> str:
    """Why an object is neither a photo nor metadata."""
    if _as_text(path) != path:
        return "its name is not UTF-8"
    kind = OTHER_IMAGES.get(posixpath.splitext(path)[1].lower())
    if kind is not None:
        return f"named as a {kind}; a photo is a JPEG named {IMAGES}/<id>.jpg"
    return f"not named {IMAGES}/<id>.jpg or {METADATA}/<id>.json"


OTHER_IMAGES = {
    ".avif": "AVIF",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".heic": "HEIC",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WebP",
}


def _unusable(id_: str) -> str | None:
    """Why an id cannot be the name of a sample, or None."""
    if "." in id_:
        return "id has a dot, and WebDataset takes what follows the first dot for the extension"
    if not id_.isascii() or not id_.isprintable() or " " in id_:
        return "id has characters that a DALI index cannot hold"
    if len(id_) > LONGEST_ID:
        return f"id is longer than {LONGEST_ID} characters"
    return None
