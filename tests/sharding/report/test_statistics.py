"""The numbers of the dataset report."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bintally.dataset.manifest import SPLITS
from sharding.report.statistics import Reason, Spread
from tests.sharding.report.catalogs import dataset_of, row, small_catalog, summary


def _five(spread: Spread | None) -> list[float]:
    assert spread is not None
    return [spread.mean, spread.p5, spread.median, spread.p95, spread.largest]


def test_the_numbers_of_a_small_catalog() -> None:
    statistics = summary(*small_catalog())
    assert statistics.statuses == {
        "excluded": 2, "orphan-image": 1, "quarantined": 2, "sharded": 4,
    }  # fmt: skip
    # A bin counts if its metadata is known, even where its photo is damaged.
    assert (statistics.bins, statistics.empty_bins, statistics.bins_with_few) == (7, 2, 6)
    assert _five(statistics.quantity) == pytest.approx([6, 0, 2, 22.3, 28])
    assert statistics.quantities.bars == {0: 2, 1: 1, 2: 2, 9: 1, 28: 1}
    assert statistics.products == 4
    assert statistics.repetition == {1: 1, 2: 2, 3: 1}
    assert [statistics.shown(1, 1), statistics.shown(2, 2), statistics.shown(3, 9)] == [1, 2, 1]
    assert statistics.products_per_bin == 8 / 7
    groups = (statistics.groups, statistics.photos_in_groups, statistics.largest_group)
    assert groups == (1, 3, 3)


def test_the_numbers_of_the_photos_are_of_bins_only() -> None:
    sizes = summary(*small_catalog()).sizes
    assert _five(sizes["bytes"]) == pytest.approx([17_000 / 7, 300, 3000, 4700, 5000])
    assert _five(sizes["width"]) == pytest.approx([400, 300, 400, 500, 500])
    assert _five(sizes["height"]) == pytest.approx([250, 200, 250, 300, 300])


def test_the_numbers_of_the_splits() -> None:
    splits = summary(*small_catalog()).splits
    assert {name: (s.samples, s.shards) for name, s in splits.items()} == {
        "train": (2, 1), "validation": (0, 0), "test": (2, 1),
    }  # fmt: skip
    assert splits["train"].class_counts == {0: 0, 1: 1, 2: 1}
    assert [splits[name].mean_quantity for name in SPLITS] == [1.5, None, 1.0]
    assert [splits[name].products for name in SPLITS] == [2, 0, 1]


def test_reasons_that_differ_in_their_details_are_one() -> None:
    reasons = [
        "EXPECTED_QUANTITY is -3, below zero",
        "EXPECTED_QUANTITY is -17, below zero",
        'EXPECTED_QUANTITY is "many", not a whole number',
        'EXPECTED_QUANTITY is "a very, very long wo…, not a whole number',
        "EXPECTED_QUANTITY is [1, 2], not a whole number",
        "EXPECTED_QUANTITY is 2.5, not a whole number",
        "photo has 9000x8000 pixels, more than 50,000,000",
        "photo does not decode: 12 extraneous bytes before marker 0xd9",
        "photo does not decode: 7 extraneous bytes before marker 0xda",
        "bin-images/x9.jpg vanished before it was fetched",
        "bin-images/x10.jpg vanished before it was fetched",
    ]
    rows = [
        row(f"x{number}", None, None, status="quarantined", reason=reason)
        for number, reason in enumerate(reasons)
    ]
    assert summary(rows, dataset_of()).reasons["quarantined"] == [
        Reason("EXPECTED_QUANTITY is …, not a whole number", 4, ["x2", "x3", "x4"]),
        Reason("EXPECTED_QUANTITY is …, below zero", 2, ["x0", "x1"]),
        Reason("bin-images/….jpg vanished before it was fetched", 2, ["x9", "x10"]),
        Reason("photo does not decode: … extraneous bytes before marker …", 2, ["x7", "x8"]),
        Reason("photo has … pixels, more than …", 1, ["x6"]),
    ]


def test_options_and_conversions_keep_their_words() -> None:
    reasons = summary(*small_catalog()).reasons
    excluded = [Reason("count is above --max-count 2", 2, ["00007", "00008"])]
    assert reasons["excluded"] == excluded
    assert reasons["sharded"] == [Reason("grey, stored as RGB", 1, ["00002"])]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 12) | st.none(),
            st.text("ABC", max_size=4) | st.none(),
            st.sampled_from(["train", "test", None]),
            st.sampled_from(["1", "2", None]),
            st.integers(0, 10**6) | st.none(),
        ),
        max_size=30,
    )
)
def test_the_numbers_are_those_that_counting_one_by_one_gives(
    rows: list[tuple[int | None, str | None, str | None, str | None, int | None]],
) -> None:
    statistics = summary(
        [
            row(str(number), count, skus, split=split, group=group, bytes=size)
            for number, (count, skus, split, group, size) in enumerate(rows)
        ],
        dataset_of(train=[1, 1, 1]),
    )
    bins = [values for values in rows if values[0] is not None]
    photos = Counter(sku for _, skus, *_ in bins for sku in skus or "")
    groups = Counter(group for *_, group, _ in bins if group is not None)
    sizes = [size for *_, size in bins if size is not None]
    assert statistics.bins == len(bins)
    assert statistics.quantities.bars == Counter(count for count, *_ in bins)
    assert statistics.repetition == Counter(photos.values())
    assert statistics.photos_in_groups == sum(n for n in groups.values() if n > 1)
    assert statistics.largest_group == max(groups.values(), default=0)
    assert sum(statistics.size_histograms["bytes"].bars.values()) == len(sizes)
    assert statistics.splits["train"].products == len(
        {sku for _, skus, split, *_ in bins if split == "train" for sku in skus or ""}
    )
    spread = statistics.sizes["bytes"]
    assert (spread and spread.mean) == (sum(sizes) / len(sizes) if sizes else None)
