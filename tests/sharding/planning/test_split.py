"""The split: exact, grouped, stratified, and a function of its arguments alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from hypothesis import example, given, settings
from hypothesis import strategies as st

from bintally.dataset.manifest import SPLITS
from tests.sharding.columns import shuffle, splits_of

RATIOS = (0.6, 0.2, 0.2)


Bucket = tuple[dict[str, int], dict[str, str]]


def _bucket(groups: Iterable[Sequence[int]]) -> Bucket:
    """The counts and the group of each sample, from the counts of each group's samples."""
    count_of: dict[str, int] = {}
    group_of: dict[str, str] = {}
    for group in groups:
        first = f"{len(count_of):05d}"
        for count in group:
            id_ = f"{len(count_of):05d}"
            count_of[id_], group_of[id_] = count, first
    return count_of, group_of


buckets = st.lists(
    st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=60
).map(_bucket)


@given(buckets, st.integers(0, 3))
def test_every_sample_has_one_split_and_no_group_has_two(bucket: Bucket, seed: int) -> None:
    counts, groups = bucket
    splits = splits_of(counts, groups, RATIOS, seed)
    assert splits.keys() == counts.keys()
    assert set(splits.values()) <= set(SPLITS)
    for id_, split in splits.items():
        assert split == splits[groups[id_]]


# Here the order of a group's members decides the last bit of a sum, and once decided a draw.
@example(_bucket([(2, 0, 3), (0, 1, 3), (2, 2, 3), (3, 1, 1)]), 0)
@given(buckets, st.integers(0, 3))
def test_the_split_does_not_depend_on_the_order_of_the_samples(bucket: Bucket, seed: int) -> None:
    counts, groups = bucket
    backwards = dict(reversed(counts.items()))
    assert splits_of(counts, groups, RATIOS, seed) == splits_of(backwards, groups, RATIOS, seed)


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_each_class_has_the_asked_shares_within_a_point(seed: int) -> None:
    # ABID's shares of 0 to 5 items, two thirds of the samples in groups of two or three.
    shares = (27, 114, 213, 250, 223, 173)
    labels = [c for c, n in enumerate(shares) for _ in range(2 * n)]
    ids = shuffle([f"{i:05d}" for i in range(len(labels))], seed, "test")
    counts = dict(zip(ids, labels, strict=True))
    groups = {id_: ids[i - i % (1 + i % 3)] for i, id_ in enumerate(ids)}
    groups = {id_: groups[groups[id_]] for id_ in ids}
    splits = splits_of(counts, groups, RATIOS, seed)
    whole, number = Counter(labels), Counter(splits.values())
    for split, ratio in zip(SPLITS, RATIOS, strict=True):
        assert abs(number[split] / len(labels) - ratio) < 0.01
        own = Counter(counts[id_] for id_, s in splits.items() if s == split)
        for c in whole:
            assert abs(own[c] / number[split] - whole[c] / len(labels)) < 0.01


def test_a_share_of_zero_gets_nothing() -> None:
    counts = {str(i): i % 6 for i in range(100)}
    splits = splits_of(counts, {i: i for i in counts}, (0.9, 0.1, 0.0), 0)
    assert Counter(splits.values())["test"] == 0


@given(st.sets(st.text(st.characters(codec="utf-8"), max_size=5), max_size=50), st.integers(0, 5))
def test_a_shuffle_is_a_permutation_that_the_seed_decides(ids: set[str], seed: int) -> None:
    order = shuffle([*ids], seed, "test")
    assert sorted(order) == sorted(ids)
    assert order == shuffle(sorted(ids), seed, "test")


def test_the_shuffle_is_the_same_on_every_machine() -> None:
    assert shuffle([*"abcdef"], 0, "test") == ["d", "e", "a", "c", "f", "b"]
