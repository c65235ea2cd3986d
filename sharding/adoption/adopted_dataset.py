"""The dataset that tars of others are, once all of them were read. Pure."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from bintally.dataset.catalog import encode_catalog
from bintally.dataset.labels import Classes
from bintally.dataset.manifest import ADOPT, CATALOG, SPLITS, Dataset, Shard, Split
from sharding.adoption.adopted_tar import AdoptedTar, index_path

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["describe_tars"]


def describe_tars(
    tars: Sequence[AdoptedTar], label: str, where: str | None
) -> tuple[Dataset, pa.Table, dict[str, bytes]]:
    """The dataset that tars are, its catalog, one row per sample in the order of the tars, and its
    files but for `dataset.json`, by path.

    `label` is the rule that the labels were read by, `where` how the dataset names the place of the
    tars, if that is not its own.
    """
    import pyarrow as pa

    samples = pa.concat_tables([tar.samples for tar in tars])
    counted = samples["count"].null_count == samples["label"].null_count
    labels = samples["count" if counted else "label"]
    classes: Classes = sorted(labels.drop_null().unique().to_pylist())
    # A key that comes again in its own tar is never used: no path has to tell it apart.
    num_keys = sum(len(tar.samples["key"].unique()) for tar in tars)
    shared = num_keys > len(samples["key"].unique())

    dataset = Dataset(
        classes,
        0,
        {
            "tars": len(tars),
            "bytes": sum(tar.size_bytes for tar in tars),
            "samples": len(samples),
        },
        {"command": ADOPT},
        {name: _split(name, tars, classes) for name in SPLITS},
        label=label,
        ids="path/key" if shared else "key",
        tars=where,
    )
    catalog = samples.drop_columns(["key", "label" if counted else "count"])
    catalog = catalog.append_column("id", _ids(tars, samples, shared))
    files = {index_path(tar.path): tar.index for tar in tars if tar.class_counts}
    files[CATALOG] = encode_catalog(catalog)
    dataset = replace(dataset, files={CATALOG: hashlib.sha256(files[CATALOG]).hexdigest()})
    return dataset, catalog, files


def _split(name: str, tars: Sequence[AdoptedTar], classes: Classes) -> Split:
    """The tars of a split. One of which nothing is used is no shard."""
    order = {str(label): place for place, label in enumerate(classes)}
    total = dict.fromkeys(order, 0)
    shards = []
    for tar in tars:
        if tar.split != name or not tar.class_counts:
            continue
        # Those that it has, for of a thousand classes that may be a few.
        counts = {
            label: tar.class_counts[label]
            for label in sorted(tar.class_counts, key=order.__getitem__)
        }
        for label, number in counts.items():
            total[label] += number
        number = sum(counts.values())
        shards.append(
            Shard(tar.path, index_path(tar.path), number, tar.size_bytes, tar.sha256, counts)
        )
    return Split(sum(total.values()), total, shards)


def _ids(tars: Sequence[AdoptedTar], samples: pa.Table, shared: bool) -> pa.ChunkedArray:
    """The samples' ids, no two the same. A sample that is used has the one of
    `Dataset.sample_id`; another one that would have the same gets a number."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = samples["key"]
    if shared:
        parts = [
            pc.binary_join_element_wise(tar.path.removesuffix(".tar"), tar.samples["key"], "/")
            for tar in tars
        ]
        ids = pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string())
    codes = ids.dictionary_encode().combine_chunks().indices.to_numpy()
    used_first = np.argsort(pc.is_null(samples["position"]).to_numpy(), kind="stable")
    _, first = np.unique(codes[used_first], return_index=True)
    comes_again = np.ones(len(ids), bool)
    comes_again[used_first[first]] = False
    again = np.flatnonzero(comes_again)
    if not len(again):
        return ids

    taken = {*ids.filter(pc.match_substring_regex(ids, r"#\d+$")).to_pylist()}
    numbers: defaultdict[str, Iterator[int]] = defaultdict(lambda: count(2))
    new = []
    for id_ in ids.take(again).to_pylist():
        new.append(next(name for n in numbers[id_] if (name := f"{id_}#{n}") not in taken))
        taken.add(new[-1])
    place = np.arange(len(ids))
    place[again] = len(ids) + np.arange(len(new))
    return pa.chunked_array([*ids.chunks, pa.array(new, pa.string())]).take(place)
