"""Many requests at a time: in order, each once, and an error ends them."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.threads import map_in_threads


@given(st.lists(st.integers(), max_size=50), st.integers(1, 8))
def test_every_item_is_worked_on_once_and_comes_in_order(items: list[int], threads: int) -> None:
    asked = []

    def double(item: int) -> int:
        asked.append(item)
        return 2 * item

    assert list(map_in_threads(double, items, threads)) == [2 * item for item in items]
    assert sorted(asked) == sorted(items)


def test_as_many_are_worked_on_at_a_time_as_there_are_threads() -> None:
    together = threading.Barrier(4, timeout=30)
    assert list(map_in_threads(lambda _: together.wait() >= 0, range(8), 4)) == [True] * 8


def test_an_error_is_raised_and_no_more_is_begun() -> None:
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        if item == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        list(map_in_threads(work, range(1000), 2))
    assert len(begun) < 1000
