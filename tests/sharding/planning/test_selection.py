"""Which photos a dataset is made of."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bintally.errors import UsageError
from bintally.storage.opening import open_place
from sharding.distribute import Processes
from sharding.planning.options import Options
from sharding.planning.plan import make_plan
from sharding.planning.selection import read_ids
from sharding.source.layout import read_source
from sharding.source.rows import SourceRows
from tests.sharding.columns import plan_rows, sample_of, shuffle


def grouped(number: int, seed: int) -> tuple[dict[str, int], dict[str, str]]:
    """`number` samples with ABID's shares of counts, two thirds in groups of two or three."""
    shares = (27, 114, 213, 250, 223, 173)
    labels = [c for c, n in enumerate(shares) for _ in range(-(-n * number // 1000))][:number]
    ids = shuffle([f"{i:05d}" for i in range(len(labels))], seed, "test")
    sizes = [1 + i % 3 for i in range(number)]
    groups: dict[str, str] = {}
    for size in sizes:
        own = ids[len(groups) : len(groups) + size]
        groups |= dict.fromkeys(own, own[0]) if own else {}
    return dict(zip(ids, labels, strict=True)), groups


@settings(max_examples=40)
@given(st.integers(1, 1000), st.integers(0, 1000))
def test_a_limit_takes_that_many_in_whole_groups_and_every_class_alike(
    wanted: int, seed: int
) -> None:
    counts, groups = grouped(1000, seed)
    chosen = sample_of(counts, groups, wanted, seed)
    assert wanted - 2 <= len(chosen) <= wanted
    members = defaultdict(set)
    for id_ in counts:
        members[groups[id_]].add(id_)
    assert all(own <= chosen or not own & chosen for own in members.values())
    if wanted >= 100:
        whole, own = Counter(counts.values()), Counter(counts[id_] for id_ in chosen)
        for c, number in whole.items():
            assert abs(own[c] / wanted - number / 1000) < 0.04
    assert chosen == sample_of(dict(reversed(counts.items())), groups, wanted, seed)


def test_a_limit_above_all_takes_all() -> None:
    counts, groups = grouped(10, 0)
    assert sample_of(counts, groups, 1000, 0) == set(counts)


@pytest.mark.parametrize(
    "text", ["00001\r\n00002\r\n", '["metadata/00001.json", "metadata/00002.json"]']
)
def test_a_list_that_windows_wrote_is_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_ids(tmp_path / "ids") == ["00001", "00002"]


def test_ids_come_one_a_line_or_as_udacitys_list(tmp_path: Path) -> None:
    lines = tmp_path / "ids.txt"
    lines.write_text("00002\n1\n\n00001\r\n1\n")
    assert read_ids(lines) == ["00001", "00002", "1"]
    listed = tmp_path / "file_list.json"
    listed.write_text(
        json.dumps({"1": ["data/metadata/00001.json"], "2": ["data/metadata/1.json"]})
    )
    assert read_ids(listed) == ["00001", "1"]


@pytest.mark.parametrize("text", ["", "\n\n", "{", '{"1": 3}', "[[1]]"])
def test_a_list_without_ids_is_a_usage_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text(text)
    with pytest.raises(UsageError, match="--ids"):
        read_ids(tmp_path / "ids")


def test_udacitys_list_names_its_10441_photos(abid: Path) -> None:
    ids = read_ids(abid / "tables/file_list.json")
    assert len(ids) == 10_441
    assert sum(len(id_) < 5 for id_ in ids) == 52


@pytest.fixture
def source(bucket: Path) -> SourceRows:
    return read_source(open_place(bucket), Options(), Processes(1), 4)


def sharded(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {row["id"]: row["count"] for row in rows if row["status"] == "sharded"}


def test_counts_outside_the_range_are_excluded_and_the_classes_follow(source: SourceRows) -> None:
    plan = make_plan(source, Options(min_count=2, max_count=4))
    rows = plan_rows(plan)
    assert set(sharded(rows).values()) == {2, 3, 4}
    assert plan.classes == [2, 3, 4]
    reasons = {row["reason"] for row in rows if row["status"] == "excluded"}
    assert reasons == {"count is above --max-count 4", "count is below --min-count 2"}


def test_a_list_of_ids_is_taken_and_what_is_missing_is_told(
    source: SourceRows, tmp_path: Path
) -> None:
    good = sorted(i for i, count in sharded(source.table.to_pylist()).items() if count <= 5)
    wanted = [good[0], good[7], good[9]]
    (tmp_path / "ids").write_text("\n".join([*wanted, "99999", "nonsense"]))
    plan = make_plan(source, Options(ids=tmp_path / "ids"))
    assert sorted(sharded(plan_rows(plan))) == wanted
    assert plan.ids_not_found == ["99999", "nonsense"]
    assert str(tmp_path) not in json.dumps(plan.recorded), "the content counts, not the name"


@pytest.mark.parametrize("options", [Options(limit=40), Options(fraction=0.3)])
def test_what_is_not_taken_is_excluded_with_the_reason(
    source: SourceRows, options: Options
) -> None:
    everyone = {i for i, count in sharded(source.table.to_pylist()).items() if count <= 5}
    plan = make_plan(source, options)
    taken = sharded(plan_rows(plan))
    assert len(taken) == (options.limit or round(0.3 * len(everyone)))
    left = {r["id"]: r["reason"] for r in plan_rows(plan) if r["id"] in everyone - taken.keys()}
    assert all(reason and "not in the --" in reason for reason in left.values())
    assert sum(len(shard.rows) for shard in plan.shards) == len(taken)


@pytest.mark.parametrize(
    "options",
    [
        Options(min_count=3, max_count=2),
        Options(min_count=-1),
        Options(split=(0.5, 0.5, 0.5)),
        Options(shard_samples=0),
        Options(fraction=0.0),
        Options(fraction=1.5),
        Options(limit=0),
        Options(limit=3, fraction=0.5),
        Options(group="bins"),
        Options(group="column:"),
        Options(resize="huge"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(options: Options) -> None:
    with pytest.raises(UsageError, match=r"--\w+"):
        options.check()
