"""The order of training and evaluation: pure, exact, and independent of the number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bintally.loading.lanes import EpochOrder
from bintally.loading.order import TrainingOrder, evaluation_batches, step_seed

Indices = NDArray[np.int64]

shard_sizes = st.lists(st.integers(0, 12), min_size=1, max_size=40)
lane_numbers = st.sampled_from([1, 2, 4, 8, 3])
windows = st.integers(1, 6)
batch_sizes = st.integers(1, 40)
worlds = st.integers(1, 5)
seeds = st.integers(0, 5)


def orders(
    sizes: Sequence[int], batch_size: int, seed: int, lanes: int = 0, window: int = 0, **more: Any
) -> TrainingOrder:
    return TrainingOrder(np.array(sizes, np.int64), batch_size, seed, lanes, window, **more)


def whole_epoch(sizes: Sequence[int], seed: int, epoch: int, lanes: int, window: int) -> Indices:
    order = EpochOrder(np.array(sizes, np.int64), seed, epoch, lanes, window)
    return order.at(np.arange(sum(sizes)))


@given(shard_sizes, seeds, seeds, lane_numbers, windows)
def test_an_epoch_is_a_permutation(
    sizes: list[int], seed: int, epoch: int, lanes: int, window: int
) -> None:
    order = whole_epoch(sizes, seed, epoch, lanes, window)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(sum(sizes)))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    found = {
        tuple(whole_epoch([10] * 10, seed, epoch, 2, 2))
        for seed in range(10)
        for epoch in range(10)
    }
    assert len(found) == 100


def test_the_order_is_the_same_on_every_machine_and_for_ever() -> None:
    assert whole_epoch([3, 1, 4, 2], 0, 0, 2, 1).tolist() == [3, 9, 0, 4, 1, 5, 2, 7, 8, 6]


def test_every_position_is_equally_likely() -> None:
    # 5,000 draws of where sample 0 goes among ten: each place 500 times, give or take 5 sigma.
    places = [int(np.argmin(whole_epoch([10], 0, epoch, 1, 1))) for epoch in range(5_000)]
    assert np.abs(np.bincount(places, minlength=10) - 500).max() < 5 * np.sqrt(500)


@given(shard_sizes, seeds, lane_numbers, windows)
def test_lanes_take_turns_and_go_through_their_shards_window_by_window(
    sizes: list[int], seed: int, lanes: int, window: int
) -> None:
    order = whole_epoch(sizes, seed, 0, lanes, window)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    seen: list[int] = []
    for lane in range(lanes):
        mine = shard_of[order[lane::lanes]]
        assert len(mine) == (sum(sizes) - lane + lanes - 1) // lanes
        shards = list(dict.fromkeys(mine.tolist()))
        seen += shards
        # What of a lane belongs to a shard comes within a window of so many shards.
        for shard in shards:
            first, last = np.flatnonzero(mine == shard)[[0, -1]]
            assert len({*mine[first : last + 1].tolist()}) <= window
    # Only where one lane ends and the next begins do two read the same shard.
    assert len(seen) <= len({*seen}) + lanes - 1


def test_from_64_shards_on_a_quarter_of_them_is_all_that_is_needed_at_a_time() -> None:
    for number in (64, 100, 321, 535, 1024, 20_000):
        order = orders([50] * number, 64, 0)
        shards, first, last = EpochOrder(order.sizes, 0, 0, order.lanes, order.window).spans(0, 1)
        begun = np.sort(first).searchsorted(first, side="right")
        ended = np.sort(last).searchsorted(first, side="left")
        assert len({*shards.tolist()}) == number
        assert (begun - ended).max() <= number / 4
        assert order.lanes & (order.lanes - 1) == 0 < order.lanes <= 64


@settings(max_examples=300, deadline=None)
@given(
    shard_sizes.filter(any), st.integers(1, 25), seeds, lane_numbers, windows,
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.data(),
)  # fmt: skip
def test_machines_and_their_ranks_share_every_step_and_read_what_they_said_they_would(
    sizes: list[int], batch_size: int, seed: int, lanes: int, window: int,
    machines: int, ranks: int, parts: int, data: st.DataObject,
) -> None:  # fmt: skip
    whole = whole_epoch(sizes, seed, 1, lanes, window)
    steps = len(whole) // batch_size
    first_step = data.draw(st.integers(0, steps))
    got: list[list[int]] = [[] for _ in range(steps - first_step)]
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    for rank in range(machines * ranks):
        order = orders(
            sizes, batch_size, seed, lanes, window,
            rank=rank, world_size=machines * ranks, num_machines=machines, parts=parts,
        )  # fmt: skip
        assert order.steps == steps
        schedule = order.schedule(1, first_step)
        needed = [*zip(schedule.shards, schedule.first, schedule.last, strict=True)]
        for number, batch in enumerate(order.batches(1, first_step)):
            assert len(batch) <= order.largest_part
            got[number // parts] += batch.tolist()
            for shard in {*shard_of[batch].tolist()}:
                assert any(s == shard and a <= number <= b for s, a, b in needed)
    for step, samples in enumerate(got, first_step):
        expected = whole[step * batch_size : (step + 1) * batch_size].tolist()
        assert sorted(samples) == sorted(expected)
        assert sorted(orders(sizes, batch_size, seed, lanes, window).whole_step(1, step)) == sorted(
            expected
        )


@given(st.integers(128, 400), seeds)
def test_a_machine_reads_little_more_than_its_share_of_the_shards(number: int, seed: int) -> None:
    sizes = [9] * number
    for machines in (2, 4, 8):
        for machine in range(machines):
            order = orders(
                sizes, 64, seed, rank=machine, world_size=machines, num_machines=machines
            )
            assert len(order.schedule(0, 0).shards) <= 1.15 * number / machines


@given(st.integers(0, 300), batch_sizes, worlds)
def test_an_evaluation_sees_each_sample_once_in_batches_that_no_world_size_changes(
    n: int, batch_size: int, world: int
) -> None:
    of_all = [
        batch.tolist()
        for rank in range(world)
        for batch in evaluation_batches(n, batch_size, rank, world)
    ]
    alone = [batch.tolist() for batch in evaluation_batches(n, batch_size, 0, 1)]
    assert sorted(of_all) == alone
    assert [i for batch in alone for i in batch] == list(range(n))


@given(st.integers(0, 10), st.integers(0, 1000), worlds)
def test_each_step_and_rank_draws_from_a_seed_of_its_own(seed: int, step: int, rank: int) -> None:
    others = {step_seed(seed + 1, step, rank), step_seed(seed, step + 1, rank)}
    assert step_seed(seed, step, rank) not in others | {step_seed(seed, step, rank + 1)}
    assert 0 <= step_seed(seed, step, rank) < 2**63


labelled = st.lists(st.integers(0, 5), min_size=1, max_size=200).map(np.array)


def balanced(labels: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    order = orders([7] * (len(labels) // 7) + [len(labels) % 7], 1, seed, 2, 2, labels=labels)
    return np.concatenate([*order.batches(epoch, 0)])


@settings(deadline=None)
@given(labelled, seeds, seeds)
def test_a_balanced_epoch_has_every_class_equally_often_and_its_members_evenly(
    labels: NDArray[np.int64], seed: int, epoch: int
) -> None:
    order = balanced(labels, seed, epoch)
    assert len(order) == len(labels)
    assert (order == balanced(labels, seed, epoch)).all()
    per_class = np.bincount(labels[order])[np.unique(labels)]
    assert per_class.max() - per_class.min() <= 1
    often = np.bincount(order, minlength=len(labels))
    for label in np.unique(labels):
        members = often[labels == label]
        assert members.max() - members.min() <= 1


def test_which_members_a_balanced_epoch_takes_changes_from_epoch_to_epoch() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    taken = [set(balanced(labels, 0, epoch).tolist()) for epoch in range(3)]
    assert len({frozenset(t) for t in taken}) == 3
