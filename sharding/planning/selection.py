"""Which of a bucket's good photos a dataset is made of: by count, by share, by number, or by list.

Pure functions; neighbour groups are taken or left whole, and every class in its proportion.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bintally.errors import UsageError
from sharding.planning.options import Options
from sharding.planning.split import assign_groups, ranks

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["NOT_TAKEN", "exclude", "missing_ids", "read_ids", "sample_groups"]

NOT_TAKEN = "not in the --"
"""Begins the reason of a photo that --fraction or --limit left out."""


def read_ids(file: Path) -> list[str]:
    """The ids in a file: one a line, or Udacity's `file_list.json`, lists of metadata paths.

    Sorted, each once. Raises `UsageError` where the file cannot be read or holds none.
    """
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--ids {file}: cannot be read: {error}") from error
    names = text.split("\n")
    if text.lstrip().startswith(("{", "[")):
        try:
            value = json.loads(text)
            lists = value.values() if isinstance(value, dict) else [value]
            names = [_stem(path) for paths in lists for path in paths]
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"--ids {file}: not a JSON list of paths, nor lists of them by count: {error}"
            ) from error
    ids = sorted({name.strip() for name in names} - {""})
    if not ids:
        raise UsageError(f"--ids {file}: holds no ids; write one a line")
    return ids


def _stem(path: str) -> str:
    # Not that of pathlib, which takes another part of "1." from Python 3.14 on.
    return posixpath.splitext(posixpath.basename(path))[0]


def missing_ids(listed: Sequence[str], ids: pa.Array) -> list[str]:
    """Those of a list that are not among `ids`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(listed, pa.string())
    # Not at once: the set of all ids would be large.
    found = ids.filter(pc.is_in(ids, wanted))
    missing: list[str] = wanted.filter(pc.invert(pc.is_in(wanted, found))).to_pylist()
    return missing


def sample_groups(
    classes: NDArray[np.int32],
    groups: NDArray[np.int64],
    names: pa.Array,
    wanted: int,
    seed: int,
) -> NDArray[np.bool_]:
    """Which samples are taken, `wanted` in all: whole groups, each class in its proportion.

    One or two fewer where only groups are left to choose from, which no number need fit. The
    samples are as `assign_groups` takes them, and `names` those of all groups.
    """
    import numpy as np

    from sharding.planning.loops import settle

    if wanted >= len(classes):
        return np.ones(len(classes), bool)
    share = wanted / len(classes)
    drawn = ranks(names, seed, "selection")
    parts = assign_groups(classes, groups, drawn, (share, 1 - share))
    sizes = np.bincount(groups, minlength=len(names))
    chosen = np.zeros(len(names), bool)
    chosen[groups[parts == 0]] = True
    # Dealing whole groups misses the number by a few; the smallest groups set that right.
    present = np.flatnonzero(sizes)
    settle(chosen, sizes, present[np.lexsort((drawn[present], sizes[present]))], wanted)
    return chosen[groups]


def exclude(
    good: pa.Table,
    held: NDArray[np.bool_],
    groups: NDArray[np.int64],
    names: pa.Array,
    listed: Sequence[str] | None,
    options: Options,
) -> pa.Array:
    """Why the options leave out a row, null for one that they choose; what is `held` stays."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    reasons = pa.nulls(len(good), pa.string())
    count = good["count"]
    chosen: list[tuple[pa.Array, str]] = [
        (pc.greater(count, options.max_count), f"count is above --max-count {options.max_count}"),
        (pc.less(count, options.min_count), f"count is below --min-count {options.min_count}"),
    ]
    if listed is not None:
        absent = pc.invert(pc.is_in(good["id"], pa.array(listed)))
        chosen.append((absent, "not in the list of --ids"))
    free = pa.array(~held)
    for left_out, reason in chosen:
        applies = pc.and_(pc.and_(pc.fill_null(left_out, False), free), pc.is_null(reasons))
        reasons = pc.if_else(applies, reason, reasons)

    candidates = np.flatnonzero(pc.and_(pc.is_null(reasons), free))
    wanted, reason = len(candidates), ""
    if options.fraction is not None:
        wanted = round(options.fraction * len(candidates))
        reason = f"{NOT_TAKEN}fraction {options.fraction}"
    elif options.limit is not None:
        wanted = max(0, options.limit - int(held.sum()))
        reason = f"{NOT_TAKEN}limit {options.limit}"
    label = good["label"] if count.null_count == len(good) else count
    classes = label.take(pa.array(candidates)).combine_chunks().dictionary_encode().indices
    taken = sample_groups(classes.to_numpy(), groups[candidates], names, wanted, options.seed)
    left = np.zeros(len(good), bool)
    left[candidates[~taken]] = True
    return pc.if_else(left, reason, reasons)
