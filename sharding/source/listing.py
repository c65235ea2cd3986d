"""The objects of a source as columns: listed, or read from a list that was made before."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from bintally.errors import UsageError
from bintally.storage.folder import Folder
from bintally.storage.place import LOCK, Entry, Place
from sharding.source.ids import repeated
from sharding.tables.plain_types import plain_text
from sharding.tables.table_file import read_file, read_table_file

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["as_text", "is_anonymous", "list_source"]


def list_source(place: Place, listing: str | None = None) -> pa.Table:
    """All objects of a place, in no particular order: `path` (text), `bytes` (int64) and `version`
    (text), as in `Entry`. The version is empty where it is not known. It is null where the path is
    not the object's name but that name written out, which is not UTF-8.

    `listing` is a list to take them from: the `manifest.json` of an S3 Inventory, or a table with
    columns `path` (below the place) or `key` (in its bucket), `size` or `bytes`, and perhaps
    `etag`; a path or s3://BUCKET/KEY. Raises `UsageError`, naming what is wrong there.
    """
    if listing is None:
        return _listed(place)
    inventory = listing.lower().endswith(".json")
    table = (_read_inventory if inventory else _read_list)(place, listing)
    return _checked(table, place, listing)


AT_A_TIME = 4096
"""Entries as Python's objects, of which each takes some 300 bytes."""


def _listed(place: Place) -> pa.Table:
    import pyarrow as pa

    entries, batches = iter(place.entries()), [_schema().empty_table()]
    while some := [*islice(entries, AT_A_TIME)]:
        batches.append(_table(some))
    return pa.concat_tables(batches)


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([("path", pa.string()), ("bytes", pa.int64()), ("version", pa.string())])


def _table(entries: Sequence[Entry]) -> pa.Table:
    import pyarrow as pa

    paths: list[str] = [entry.path for entry in entries]
    versions: list[str | None] = [entry.version for entry in entries]
    try:
        "".join(paths).encode()
    except UnicodeEncodeError:
        paths = [as_text(path) for path in paths]
        written_out = (path != e.path for path, e in zip(paths, entries, strict=True))
        versions = [None if out else v for out, v in zip(written_out, versions, strict=True)]
    sizes = [entry.size_bytes for entry in entries]
    return pa.table([paths, sizes, versions], schema=_schema())


def as_text(name: str) -> str:
    """A name with what in it is not UTF-8 written out: a folder's files may be called anything."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _read_list(place: Place, listing: str) -> pa.Table:
    import pyarrow.compute as pc

    table = read_table_file(listing, anonymous=is_anonymous(place))
    columns = {name.lower(): name for name in table.column_names}
    path = columns.get("path", columns.get("key"))
    size = columns.get("size", columns.get("bytes"))
    if path is None or size is None:
        raise UsageError(
            f"{listing}: has no column {'path or key' if path is None else 'size or bytes'}; it "
            f"has {', '.join(map(repr, table.column_names))}"
        )
    etags = table[columns["etag"]] if "etag" in columns else None
    found = _objects(listing, table[path], table[size], etags)
    if path.lower() == "key":
        return _in_place(found, place)
    paths = pc.replace_substring_regex(found["path"], r"^(\./+)+", "")
    return found.set_column(0, "path", paths)


def _objects(
    file: str, paths: pa.ChunkedArray, sizes: pa.ChunkedArray, etags: pa.ChunkedArray | None
) -> pa.Table:
    """Columns of a list, in the types that they are to have."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        paths, sizes = plain_text(paths), plain_text(sizes)
        versions = pa.nulls(len(paths), pa.string()) if etags is None else plain_text(etags)
    except TypeError as error:
        raise UsageError(f"{file}: a column is of the type {error}; write it as text") from error
    # Programs that leave cells empty write 12.0 for 12.
    sizes = pc.replace_substring_regex(sizes, r"\.0$", "")
    good = pc.and_(
        pc.match_substring_regex(sizes, r"^[0-9]{1,18}$"), pc.greater(pc.binary_length(paths), 0)
    )
    row = pc.index(pc.fill_null(good, False), False).as_py()
    if row >= 0:
        raise UsageError(
            f"{file}: row {row + 1:,} (without the header) has no path, or no number of bytes: "
            f"{paths[row].as_py()!r}, {sizes[row].as_py()!r}"
        )
    versions = pc.replace_substring_regex(versions, r'^(?:W/)?"?(.*?)"?$', r"\1")
    columns = [paths, sizes.cast(pa.int64()), pc.fill_null(versions, "")]
    return pa.table(columns, schema=_schema())


def is_anonymous(place: Place) -> bool:
    """Whether unsigned requests are sent to a place, and so to what lies beside it."""
    from bintally.storage.s3.prefix import S3Prefix

    return isinstance(place, S3Prefix) and place.anonymous


def _in_place(table: pa.Table, place: Place) -> pa.Table:
    """Those objects of a bucket that are in a place, with their paths below it."""
    import pyarrow.compute as pc

    from bintally.storage.s3.prefix import S3Prefix

    root = f"{place.prefix}/" if isinstance(place, S3Prefix) and place.prefix else ""
    table = table.filter(pc.starts_with(table["path"], root))
    below = pc.utf8_slice_codeunits(table["path"], len(root))
    return table.set_column(0, "path", below)


def _read_inventory(place: Place, listing: str) -> pa.Table:
    import pyarrow as pa

    from bintally.storage.s3.prefix import S3Prefix

    anonymous = is_anonymous(place)
    manifest = _read_manifest(listing, anonymous)
    bucket = manifest["sourceBucket"]
    if not isinstance(place, S3Prefix) or place.bucket != bucket:
        raise UsageError(f"{listing}: is the inventory of s3://{bucket}, and not of {place}")
    header = manifest["fileSchema"] if manifest["fileFormat"] == "CSV" else ""
    parts = [_schema().empty_table()]
    for file in manifest["files"]:
        if listing.startswith("s3://"):
            name = f"s3://{manifest['destinationBucket'].rpartition(':')[2]}/{file['key']}"
        else:  # In a copy of the inventory's folder.
            name = str(Path(listing).parent.parent / "data" / file["key"].rpartition("/")[2])
        part = read_table_file(name, anonymous=anonymous, header=header)
        parts.append(_latest(part, name, is_encoded=bool(header)))
    return _in_place(pa.concat_tables(parts), place)


def _read_manifest(listing: str, anonymous: bool) -> Mapping[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(read_file(listing, anonymous=anonymous))
        texts = [manifest[n] for n in ("sourceBucket", "destinationBucket", "fileSchema")]
        texts += [file["key"] for file in manifest["files"]]
        kind = manifest["fileFormat"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{listing}: not the manifest of an S3 Inventory; name its manifest.json, or a table "
            "of paths and sizes"
        ) from error
    if kind not in ("CSV", "Parquet"):
        raise UsageError(f"{listing}: has the format {kind}; make the inventory as CSV or Parquet")
    return manifest


def _latest(part: pa.Table, name: str, *, is_encoded: bool) -> pa.Table:
    """The objects of a part of an inventory, in their latest versions, by key."""
    import pyarrow.compute as pc

    # CSV has IsLatest and ETag where Parquet has is_latest and e_tag.
    part = part.rename_columns([c.lower().replace("_", "") for c in part.column_names])
    if not {"key", "size"} <= {*part.column_names}:
        raise UsageError(f"{name}: has no Key or no Size; let the inventory have the field Size")
    for column, wanted in (("islatest", "true"), ("isdeletemarker", "false")):
        if column in part.column_names:
            part = part.filter(pc.equal(pc.utf8_lower(plain_text(part[column])), wanted))
    keys = _decoded(part["key"]) if is_encoded else part["key"]
    etags = part["etag"] if "etag" in part.column_names else None
    return _objects(name, keys, part["size"], etags)


def _decoded(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """Keys as they are in CSV, with `%C3%A9` for é and a plus for a space."""
    import pyarrow as pa
    import pyarrow.compute as pc

    chunks = []
    for chunk in keys.chunks:
        encoded = pc.fill_null(pc.match_substring_regex(chunk, "[%+]"), False)
        decoded = [unquote_plus(key) for key in chunk.filter(encoded).to_pylist()]
        chunks.append(pc.replace_with_mask(chunk, encoded, pa.array(decoded, pa.string())))
    return pa.chunked_array(chunks, pa.string())


def _checked(table: pa.Table, place: Place, listing: str) -> pa.Table:
    """A list without what no listing of a place holds."""
    import pyarrow as pa
    import pyarrow.compute as pc

    # Empty objects that end in a slash are what AWS's console calls folders.
    folders = pc.and_(pc.ends_with(table["path"], "/"), pc.equal(table["bytes"], 0))
    unlisted = pc.is_in(table["path"], pa.array(["", LOCK]))
    table = table.filter(pc.invert(pc.or_(folders, unlisted)))
    if not len(table):
        raise UsageError(f"{listing}: lists no object of {place}")
    outside = pc.match_substring_regex(table["path"], r"^/|(^|/)\.\.(/|$)")
    if isinstance(place, Folder) and pc.any(outside).as_py():
        path = table["path"].filter(outside)[0].as_py()
        raise UsageError(f"{listing}: lists {path!r}, which is not below {place}")
    if pc.count_distinct(table["path"]).as_py() < len(table):
        table = table.group_by(table.column_names).aggregate([])
        twice = repeated(table["path"])
        if len(twice):
            raise UsageError(f"{listing}: lists {twice[0].as_py()!r} twice, and not as equal")
    return table
