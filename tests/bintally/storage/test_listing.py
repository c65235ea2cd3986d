"""A listing is whole, and divided among its threads, whatever the keys look like."""

from __future__ import annotations

import threading
import time
import uuid
from bisect import bisect_right
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bintally.storage.place import Entry
from bintally.storage.s3.listing import Page, key_between, list_in_parallel

KEYS = st.text(st.sampled_from("01ab./_~ é\u2fff"), min_size=1, max_size=6)


def page_of(keys: Sequence[str], after: str, size: int) -> Page:
    start = bisect_right(keys, after)
    found = [Entry(key, 1, "") for key in keys[start : start + size]]
    return Page(found, found[-1].path if start + size < len(keys) else None)


@given(st.sets(KEYS, min_size=1), st.integers(1, 5), st.integers(1, 8))
def test_every_key_is_listed_once(names: set[str], size: int, threads: int) -> None:
    keys = sorted(f"folder/{name}" for name in names)
    listed = list_in_parallel(
        lambda after: page_of(keys, after, size), "folder/", "folder/", threads
    )
    assert sorted(entry.path for entry in listed) == keys


@given(KEYS, st.none() | KEYS, st.sets(st.characters(max_codepoint=0x2FF)))
def test_a_key_between_two_lies_between_them(low: str, high: str | None, seen: set[str]) -> None:
    low, high = f"f/{low}", None if high is None else f"f/{high}"
    middle = key_between(low, high, "f/", sorted(seen))
    if middle is not None:
        assert low < middle
        assert high is None or middle < high
        assert middle.startswith("f/")


SHAPES = {
    "digits": [f"{i:05d}.jpg" for i in range(20_000)],
    "unpadded": [f"{i}.jpg" for i in range(20_000)],
    "camera": [f"IMG_{i:06d}.JPG" for i in range(20_000)],
    "one folder": [f"2024/05/warehouse/photo-{i:07d}.jpeg" for i in range(20_000)],
    "hex": [f"{uuid.UUID(int=i * 2**100 % 2**127)}.jpg" for i in range(20_000)],
    "two kinds": [f"a{i:06d}" for i in range(10_000)] + [f"zz-{i:06d}" for i in range(10_000)],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_keys_of_any_shape_are_divided_among_the_threads(shape: str) -> None:
    keys = sorted(f"bin-images/{name}" for name in SHAPES[shape])
    lock, in_flight, beside = threading.Lock(), 0, []

    def page(after: str) -> Page:
        nonlocal in_flight
        with lock:
            in_flight += 1
        time.sleep(0.02)
        answer = page_of(keys, after, 100)
        with lock:
            if len(answer.entries) == 100:
                beside.append(in_flight)
            in_flight -= 1
        return answer

    listed = list_in_parallel(page, keys[99], "bin-images/", 16)
    assert sorted(entry.path for entry in listed) == keys[100:]
    # A full page comes in with others on their way beside it, but for the first ones.
    assert sorted(beside)[len(beside) // 2] >= 4
    assert len(beside) < 3 * len(keys) / 100
