"""A source whose labels come in a file: photos that may lie anywhere, joined with the rows that
speak of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bintally.errors import UsageError
from bintally.storage.place import Place
from sharding.source.assembly import assemble
from sharding.source.ids import (
    NOT_UTF8,
    PHOTO_NAMES,
    are_photos,
    other_images,
    path_without_extension,
    repeated,
    sample_ids,
    stems,
)
from sharding.source.labels_file import Labels
from sharding.source.rows import SourceRows

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["read_labelled"]


def read_labelled(listing: pa.Table, labels: Labels, source: Place) -> SourceRows:
    """The rows of a source: its photos, what is named as an image of another kind, what else the
    labels name, and what they name and is not there.

    `listing` is as `list_source` makes it. Neither its order nor that of the labels matters.
    Raises `UsageError` where there are no photos, or where the labels name none of them.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    listing = listing.combine_chunks()
    paths, version = (listing[name].combine_chunks() for name in ("path", "version"))
    looks = are_photos(paths)
    photos = pc.and_(looks, version.is_valid())
    photo_paths = paths.filter(photos)
    if not len(photo_paths):
        raise UsageError(f"{source}: no photos here: nothing is named {PHOTO_NAMES}")
    subjects, vague = _subjects(labels, paths, photos)
    if subjects.min() >= len(paths):
        raise UsageError(
            f"{labels.file}: none of its {len(subjects):,} rows names an object of {source}: the "
            f"first {labels.key_column!r} is {labels.keys[0].as_py()!r}, and a photo is called "
            f"{photo_paths[0].as_py()!r}"
        )
    subjects, rows, said = _one_row_each(subjects, labels.table)

    there = subjects < len(paths)
    row_of = np.full(len(paths), -1)
    row_of[subjects[there]] = rows[there]
    unnamed = pa.array(row_of < 0)
    row = pa.array(row_of, mask=row_of < 0)

    others = other_images(paths)
    unfit = pc.coalesce(others, pc.if_else(looks, None, f"not named {PHOTO_NAMES}"))
    unfit = pc.if_else(version.is_valid(), unfit, NOT_UTF8)
    unclear = pc.if_else(vague, "other photos have the name by which the labels call it", None)
    unlabelled = pc.if_else(unnamed, "no row of the labels names it", None)
    reason = pc.coalesce(
        unfit, pc.if_else(unnamed, unclear, None), unlabelled, said["reason"].take(row)
    )
    orphan = pc.and_(pc.and_(unnamed, unfit.is_null()), pc.invert(vague))
    status = pc.if_else(
        reason.is_null(), "sharded", pc.if_else(orphan, "orphan-image", "quarantined")
    )
    objects = pa.table(
        {
            "id": pc.replace_with_mask(paths, photos, sample_ids(photo_paths)),
            "path": paths,
            "bytes": listing["bytes"],
            "version": version,
            "status": status,
            "reason": reason,
            "row": row,
        }
    ).filter(pc.or_(pc.or_(looks, others.is_valid()), pc.invert(unnamed)))
    absent = pa.table({"id": labels.keys.take(rows[~there]), "row": rows[~there]})
    for name, value in (("status", "orphan-metadata"), ("reason", "the source has no such photo")):
        absent = absent.append_column(name, pa.repeat(value, len(absent)))
    table = pa.concat_tables([objects, absent], promote_options="default")
    said = said.drop_columns(["reason"]).take(table["row"].combine_chunks())
    good = table["reason"].is_null()
    for name in said.column_names:
        value = pc.if_else(good, said[name], None) if name in ("count", "label") else said[name]
        table = table.append_column(name, value)
    return assemble(table, labels.extras, {"images": len(photo_paths), "labels": len(labels.keys)})


def _subjects(
    labels: Labels, paths: pa.StringArray, photos: pa.BooleanArray
) -> tuple[NDArray[np.int64], pa.BooleanArray]:
    """Of what each row speaks: the number of an object; from their number on, what is not there;
    -1 for an id that several photos have, which the mask of objects tells."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    keys = labels.keys
    if labels.by_id:
        photo_paths = paths.filter(photos)
        wholes, names = path_without_extension(photo_paths), stems(photo_paths)
        by_path = pc.index_in(keys, wholes)
        several = pc.or_(
            pc.is_in(keys, repeated(wholes)),
            pc.and_(by_path.is_null(), pc.is_in(keys, repeated(names))),
        )
        found = pc.indices_nonzero(photos).take(pc.coalesce(by_path, pc.index_in(keys, names)))
        doubtful = keys.filter(several)
        vague = pc.or_(pc.is_in(wholes, doubtful), pc.is_in(names, doubtful))
        vague = pc.replace_with_mask(photos, photos, vague)
    else:
        found = pc.index_in(keys, paths)
        several, vague = (pa.array(np.zeros(len(array), bool)) for array in (keys, paths))
    missing = pc.and_(found.is_null(), pc.invert(several))
    absent = keys.filter(missing).dictionary_encode().indices.to_numpy()
    subjects = np.array(found.fill_null(0), np.int64)
    subjects[missing.to_numpy(zero_copy_only=False)] = len(paths) + absent
    subjects[several.to_numpy(zero_copy_only=False)] = -1
    return subjects, vague


def _one_row_each(
    subjects: NDArray[np.int64], table: pa.Table
) -> tuple[NDArray[np.int64], NDArray[np.int64], pa.Table]:
    """What is spoken of, ascending, and for each the row that counts; the table, with a reason in
    those rows of which another one contradicts the label.

    Of several that agree in it, that is the least, so that it is the same in any order.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    order = np.argsort(subjects, kind="stable")
    order = order[np.count_nonzero(subjects < 0) :]
    first = np.flatnonzero(np.diff(subjects[order], prepend=-1))
    lengths = np.diff(first, append=len(order))
    rows = order[first]
    if not np.any(lengths > 1):
        return subjects[rows], rows, table
    several = order[np.repeat(lengths > 1, lengths)]
    columns = {"subject": pa.array(subjects[several])}
    columns |= {str(i): _sortable(c.take(several)) for i, c in enumerate(table.columns)}
    least_first = pc.sort_indices(pa.table(columns), [(name, "ascending") for name in columns])
    several = several[least_first]
    runs = lengths[lengths > 1]
    starts = np.cumsum(runs) - runs
    rows[lengths > 1] = several[starts]

    labels = pc.coalesce(table["count"].cast(pa.string()), table["label"], table["reason"])
    labels = labels.take(several).combine_chunks()
    codes = labels.dictionary_encode().indices.to_numpy()
    contradicted = np.minimum.reduceat(codes, starts) != np.maximum.reduceat(codes, starts)
    reasons = {}
    for start, run in zip(starts[contradicted], runs[contradicted], strict=True):
        told = sorted({*labels.slice(start, run).to_pylist()})
        reasons[several[start]] = f"rows contradict each other: {' and '.join(told)}"
    mask = np.zeros(len(table), bool)
    mask[[*reasons]] = True
    reason = pc.replace_with_mask(
        table["reason"].combine_chunks(),
        pa.array(mask),
        pa.array([reasons[row] for row in sorted(reasons)], pa.string()),
    )
    at = table.column_names.index("reason")
    return subjects[rows], rows, table.set_column(at, "reason", reason)


def _sortable(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    import pyarrow as pa

    if not pa.types.is_nested(column.type):
        return column
    return pa.array([json.dumps(value) for value in column.to_pylist()])
