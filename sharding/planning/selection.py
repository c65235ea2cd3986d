"""Which of a bucket's good photos a dataset is made of: by count, by share, by number, or by list.

Pure functions; neighbour groups are taken or left whole, and every class in its proportion.
"""

from __future__ import annotations

import json
import posixpath
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from bintally.errors import UsageError
from sharding.planning.split import assign_groups, shuffled

__all__ = ["read_ids", "sample_groups"]


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


def sample_groups(
    counts: Mapping[str, int], groups: Mapping[str, str], wanted: int, seed: int
) -> set[str]:
    """`wanted` of the ids in `counts`: whole groups, each class in its proportion.

    One or two fewer where only groups are left to choose from, which no number need fit.
    """
    total = len(counts)
    if wanted >= total:
        return set(counts)
    share = wanted / total
    assigned = assign_groups(counts, groups, (share, 1 - share), seed, "selection")
    chosen = {id_ for id_, part in assigned.items() if part == 0}
    members: dict[str, list[str]] = defaultdict(list)
    for id_ in counts:
        members[groups[id_]].append(id_)
    # Dealing whole groups misses the number by a few; the smallest groups set that right.
    smallest_first = sorted(shuffled(members, seed, "selection"), key=lambda g: len(members[g]))
    for group in smallest_first:
        if len(chosen) > wanted:
            chosen.difference_update(members[group])
    for group in smallest_first:
        if members[group][0] not in chosen and len(chosen) + len(members[group]) <= wanted:
            chosen.update(members[group])
    return chosen
