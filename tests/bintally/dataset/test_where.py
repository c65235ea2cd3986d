"""A part of a dataset: which samples an expression means, and what is no expression."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bintally
from bintally.dataset.samples import Samples
from bintally.dataset.where import select
from bintally.storage.opening import open_place
from tests.conftest import copy
from tests.counting_place import CountingPlace

ROWS = [
    {"id": "00001", "count": 0, "width": 300, "height": 200, "shard": "train/a.tar", "skus": []},
    {"id": "00002", "count": 3, "width": 500, "height": 200, "shard": "train/a.tar", "skus": ["x"]},
    {"id": "00003", "count": 5, "width": None, "height": 700, "shard": "test/b.tar", "skus": ["x"]},
    {"id": "00004", "count": None, "width": 600, "height": 600, "shard": None, "skus": None},
]
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("count", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("shard", pa.dictionary(pa.int32(), pa.string())),
        ("skus", pa.list_(pa.string())),
    ]
)
TABLE = pa.Table.from_pylist(ROWS, SCHEMA)


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ("count <= 3", ["00001", "00002"]),
        ("1 <= count <= 5", ["00002", "00003"]),
        ("count != 3", ["00001", "00003"]),
        ("not count == 3", ["00001", "00003"]),
        ("count in (0, 5)", ["00001", "00003"]),
        ("count not in [0]", ["00002", "00003"]),
        ("width > 2 * height", ["00002"]),
        ("width / height == 1.5 or count == 5", ["00001", "00003"]),
        ("shard == 'train/a.tar' and count > -1", ["00001", "00002"]),
        ("  id >= '00003'\n", ["00003", "00004"]),
        ("-count < -4", ["00003"]),
    ],
)
def test_it_means_what_it_says_and_what_is_missing_is_left_out(where: str, ids: list[str]) -> None:
    assert select(TABLE, where)["id"].to_pylist() == ids


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("cuont < 3", "no column 'cuont'; it has id, count, width, height, shard, skus"),
        ("count <", "is no expression: invalid syntax"),
        ("", "is no expression"),
        ("count", "does not fit the columns: Filter expression must evaluate to bool"),
        ("count < 'three'", "does not fit the columns"),
        ("skus == 'x'", "the column 'skus' is a list"),
        ("'x' in skus", "'skus' is no comparison of columns, numbers and texts"),
        ("open('/etc/passwd')", "is no comparison"),
        ("count.__class__ == 1", "'count.__class__' is no comparison"),
        ("[c for c in (1, 2)]", "is no comparison"),
        ("count == None", "'None' is no comparison"),
        (f"count < {10**40}", "does not fit the columns"),
        ("(" * 5000 + "1" + ")" * 5000, "is no expression"),
        ("not " * 5000 + "count == 1", ""),
    ],
)
def test_what_is_no_expression_is_named(where: str, reason: str) -> None:
    with pytest.raises(bintally.UsageError) as caught:
        select(TABLE, where)
    assert reason in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="count wdh<=>!()[]'\"0123456789.,+-*/notandorinx\\#\n", max_size=30))
def test_whatever_is_written_is_an_expression_or_one_error(where: str) -> None:
    with contextlib.suppress(bintally.UsageError):
        assert select(TABLE, where).num_rows <= len(ROWS)


def ids_of(loader: Any) -> list[str]:
    return [id_ for batch in loader for id_ in batch.ids]


def queried(shards: Path, split: str, most: int) -> set[str]:
    rows = pq.read_table(shards / "catalog.parquet").to_pylist()
    return {r["id"] for r in rows if r["split"] == split and r["count"] <= most}


def test_a_loader_of_a_part_has_its_length_its_photos_and_no_others(shards: Path) -> None:
    more: dict[str, Any] = {"image_size": 32, "device": "cpu", "where": "count <= 3"}
    train = bintally.Loader(shards, batch_size=8, **more)
    wanted = queried(shards, "train", 3)
    seen = ids_of(train)
    assert len(train) == len(wanted) // 8 == len(seen) // 8
    assert len({*seen}) == len(seen)
    assert {*seen} <= wanted
    test = bintally.Loader(shards, split="test", batch_size=8, **more)
    assert sorted(ids_of(test)) == sorted(queried(shards, "test", 3))
    # It goes on exactly, and only with the same filter.
    again = bintally.Loader(shards, batch_size=8, **more)
    first = next(iter(again)).ids
    resumed = bintally.Loader(shards, batch_size=8, **more)
    resumed.load_state_dict(again.state_dict())
    assert [*first, *ids_of(resumed)] == seen
    with pytest.raises(ValueError, match="where is 'count <= 4' here, and was 'count <= 3'"):
        bintally.Loader(shards, batch_size=8, **more | {"where": "count <= 4"}).load_state_dict(
            again.state_dict()
        )
    with pytest.raises(bintally.UsageError, match=r"only 0 samples where count > 99$"):
        bintally.Loader(shards, batch_size=8, **more | {"where": "count > 99"})


def test_labels_and_neighbours_of_a_part_are_its_own(shards: Path) -> None:
    place = open_place(shards)
    dataset = bintally.read_dataset(shards)
    whole, part = (Samples(place, dataset, "train", where=w) for w in (None, "count != 3"))
    counts = {id_: whole.count(i) for i, id_ in enumerate(whole.ids)}
    assert part.ids == [id_ for id_ in whole.ids if counts[id_] != 3]
    assert part.all_labels(dataset.classes).tolist() == [counts[id_] for id_ in part.ids]
    kept = {count: n for count, n in whole.class_counts.items() if count != "3"} | {"3": 0}
    assert part.class_counts == kept
    for members in np.split(np.arange(len(part)), part.sizes.cumsum()[:-1]):
        following = [*members[1:], members[0]]
        assert [part.neighbour(i) for i in members.tolist()] == following
    assert part.identity != whole.identity == dataset.sha256


def test_no_shard_without_a_match_is_fetched(
    small_shards: Path, shards_on_s3: str, tmp_path: Path
) -> None:
    from bintally.dataset.shard_cache import shard_cache
    from bintally.loading.batches import load
    from tests.bintally.loading.test_batches import CLASSES, NoPixels

    place = CountingPlace(shards_on_s3)
    dataset = bintally.read_dataset(place)
    rows = pq.read_table(small_shards / "catalog.parquet").to_pylist()
    first = min(row["shard"] for row in rows if row["split"] == "train")
    where = f"shard == '{first}'"
    part = Samples(place, dataset, "train", shard_cache(tmp_path, 0), where)
    import numpy as np

    batches = [*load(part, CLASSES, NoPixels(), [np.arange(len(part))])]
    assert len(batches[0].ids) == len(part) == 6
    assert {*place.asked} == {first}


def test_a_catalog_that_names_a_shard_there_is_not_is_damaged(shards: Path, tmp_path: Path) -> None:
    copy(open_place(shards), open_place(tmp_path / "copy"))
    file = tmp_path / "copy/catalog.parquet"
    table = pq.read_table(file)
    rows = table.to_pylist()
    next(row for row in rows if row["split"] == "train")["shard"] = "train/no.tar"
    pq.write_table(pa.Table.from_pylist(rows, table.schema), file)
    dataset = bintally.read_dataset(shards)
    with pytest.raises(bintally.WorkError, match=r"names the shard train/no\.tar"):
        Samples(open_place(tmp_path / "copy"), dataset, "train", where="count < 9")
