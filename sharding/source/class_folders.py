"""A source whose folders are the classes: `CLASS/…/NAME.jpg`, within folders of splits or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bintally.dataset.manifest import SPLIT_NAMES
from bintally.errors import UsageError
from bintally.storage.place import Place
from sharding.source.assembly import assemble
from sharding.source.ids import NOT_UTF8, are_photos, other_images, sample_ids
from sharding.source.label_values import label_columns
from sharding.source.rows import SourceRows

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_class_folders"]


def read_class_folders(listing: pa.Table, source: Place) -> SourceRows:
    """The rows of a source: its photos, and what is named as an image of another kind.

    A photo's class is the first folder of its path. Folders in which all photos lie, one inside
    the other, do not count, nor do then those of splits, if there are two of `SPLIT_NAMES`: they
    prescribe the split. `listing` is as `list_source` makes it, in any order.

    Raises `UsageError` where no photo has a class.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    paths = listing["path"].combine_chunks()
    others = other_images(paths)
    seen = pc.or_(are_photos(paths), others.is_valid())
    listing, others, paths = (values.filter(seen) for values in (listing, others, paths))
    version = listing["version"].combine_chunks()
    unfit = pc.if_else(version.is_valid(), others, NOT_UTF8)
    hidden = pc.match_substring_regex(paths, HIDDEN)
    unfit = pc.coalesce(unfit, pc.if_else(hidden, "in a hidden folder", None))
    photos = unfit.is_null()

    below = _below_common_folders(pc.if_else(photos, paths, None))
    split, below = _splits(below)
    classes = _first_folder(below)
    columns = label_columns(pa.chunked_array([classes]))
    outside = split.is_null() if split.null_count < len(split) else False
    reason = pc.coalesce(
        unfit,
        pc.if_else(outside, "in no split's folder, where others are", None),
        pc.if_else(classes.is_null(), "in no class's folder", None),
        columns["reason"],
    )
    good = reason.is_null()
    if not pc.any(good).as_py():
        example = f" ({paths[0].as_py()}: {reason[0].as_py()})" if len(paths) else ""
        raise UsageError(
            f"{source}: no photo with a label here{example}; photos may lie as bin-images/<id>.jpg "
            "beside metadata/<id>.json, or anywhere, with a file that labels them (--labels FILE), "
            "or in a folder for each class (<class>/<name>.jpg)"
        )
    table = pa.table(
        {
            "id": pc.replace_with_mask(paths, photos, sample_ids(paths.filter(photos))),
            "path": paths,
            "bytes": listing["bytes"],
            "version": version,
            "count": pc.if_else(good, columns["count"], None),
            "label": pc.if_else(good, columns["label"], None),
            "split": pc.if_else(good, split, None),
            "status": pc.if_else(good, "sharded", "quarantined"),
            "reason": reason,
        }
    )
    return assemble(table, {}, {"images": pc.sum(photos).as_py()})


HIDDEN = r"(^|/)(\.[^/]*|__MACOSX)/"
"""Where programs keep copies and previews of photos."""


def _first_folder(paths: pa.StringArray) -> pa.StringArray:
    """Null for a path without one."""
    import pyarrow.compute as pc

    inside = pc.match_substring(paths, "/")
    return pc.if_else(inside, pc.replace_substring_regex(paths, r"(?s)/.*$", ""), None)


def _below_first_folder(paths: pa.StringArray) -> pa.StringArray:
    """Null for a path without one."""
    import pyarrow.compute as pc

    inside = pc.match_substring(paths, "/")
    return pc.if_else(inside, pc.replace_substring_regex(paths, r"^[^/]*/", ""), None)


def _below_common_folders(paths: pa.StringArray) -> pa.StringArray:
    """The paths below the folders that hold all that is in a folder; null for what is in none."""

    while True:
        folders, below = _first_folder(paths), _below_first_folder(paths)
        if len(folders.drop_null().unique()) != 1 or not _any_folder(below):
            return paths
        paths = below


def _any_folder(paths: pa.StringArray) -> bool:
    import pyarrow.compute as pc

    return pc.any(pc.match_substring(paths, "/")).as_py() is True


def _splits(paths: pa.StringArray) -> tuple[pa.StringArray, pa.StringArray]:
    """The split that each path's first folder prescribes, and the path below it, null for one in
    none; or no splits, and the paths."""
    import pyarrow as pa
    import pyarrow.compute as pc

    folders, below = pc.utf8_lower(_first_folder(paths)), _below_first_folder(paths)
    numbers = pc.index_in(folders, pa.array([*SPLIT_NAMES]))
    splits = pa.array([*SPLIT_NAMES.values()]).take(numbers)
    holding = splits.filter(pc.fill_null(pc.match_substring(below, "/"), False))
    if len(holding.drop_null().unique()) < 2:
        return pa.nulls(len(paths), pa.string()), paths
    return splits, pc.if_else(splits.is_valid(), below, None)
