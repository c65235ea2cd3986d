"""The order of training and evaluation: pure, exact, and independent of the number of ranks."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bintally.loading.order import (
    epoch_order,
    evaluation_batches,
    rank_slice,
    step_seed,
    steps,
    training_batches,
)

numbers = st.integers(1, 300)
batch_sizes = st.integers(1, 40)
worlds = st.integers(1, 5)
seeds = st.integers(0, 5)


@given(st.integers(0, 300), seeds, seeds)
def test_an_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    order = epoch_order(n, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(n))
    assert (order == epoch_order(n, seed, epoch)).all()


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(epoch_order(100, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_the_order_is_the_same_on_every_machine_and_for_ever() -> None:
    assert epoch_order(10, seed=0, epoch=0).tolist() == [0, 4, 8, 5, 1, 7, 3, 6, 9, 2]


def test_every_position_is_equally_likely() -> None:
    # 20,000 draws of where sample 0 goes among ten: each place 2,000 times, give or take 5 sigma.
    places = [int(np.argmin(epoch_order(10, 0, epoch))) for epoch in range(20_000)]
    assert np.abs(np.bincount(places, minlength=10) - 2000).max() < 5 * np.sqrt(2000)


@given(numbers, batch_sizes, worlds, seeds)
def test_ranks_share_every_batch_without_gap_or_overlap(
    n: int, batch_size: int, world: int, seed: int
) -> None:
    order = epoch_order(n, seed, 0)
    batches = list(training_batches(order, batch_size, 0))
    assert len(batches) == steps(n, batch_size)
    assert [i for batch in batches for i in batch] == order[: len(batches) * batch_size].tolist()
    for batch in batches:
        parts = [rank_slice(batch, rank, world) for rank in range(world)]
        assert np.concatenate(parts).tolist() == batch.tolist()
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(numbers, batch_sizes, st.integers(0, 50), seeds)
def test_resuming_at_any_step_gives_the_batches_that_were_left(
    n: int, batch_size: int, first_step: int, seed: int
) -> None:
    order = epoch_order(n, seed, 1)
    left = list(training_batches(order, batch_size, first_step))
    whole = list(training_batches(order, batch_size, 0))[first_step:]
    assert [b.tolist() for b in left] == [b.tolist() for b in whole]


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


@given(labelled, seeds, seeds)
def test_a_balanced_epoch_has_every_class_equally_often_and_its_members_evenly(
    labels: NDArray[np.int64], seed: int, epoch: int
) -> None:
    order = epoch_order(len(labels), seed, epoch, labels=labels)
    assert len(order) == len(labels)
    assert (order == epoch_order(len(labels), seed, epoch, labels=labels)).all()
    per_class = np.bincount(labels[order])[np.unique(labels)]
    assert per_class.max() - per_class.min() <= 1
    often = np.bincount(order, minlength=len(labels))
    for label in np.unique(labels):
        members = often[labels == label]
        assert members.max() - members.min() <= 1


def test_which_members_a_balanced_epoch_takes_changes_from_epoch_to_epoch() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    taken = [set(epoch_order(100, 0, epoch, labels=labels)) for epoch in range(3)]
    assert len({frozenset(t) for t in taken}) == 3


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(1, 8), seeds, seeds)
def test_windows_are_of_whole_shards_and_everything_comes_once(
    sizes: list[int], window: int, seed: int, epoch: int
) -> None:
    shards = np.repeat(np.arange(len(sizes)), sizes)
    order = epoch_order(len(shards), seed, epoch, windows=(shards, window))
    assert sorted(order) == list(range(len(shards)))
    met = list(dict.fromkeys(shards[order].tolist()))
    for first in range(0, len(met), window):
        # A window's samples come together, before any of another.
        together = set(met[first : first + window])
        places = np.flatnonzero(np.isin(shards[order], list(together)))
        assert len(places) == places[-1] - places[0] + 1


def test_shards_are_read_in_another_order_in_another_epoch() -> None:
    shards = np.repeat(np.arange(20), 5)
    orders = {
        tuple(dict.fromkeys(shards[epoch_order(100, 0, epoch, windows=(shards, 2))].tolist()))
        for epoch in range(5)
    }
    assert len(orders) == 5
