"""Listing many keys at a time: a page of S3 takes a tenth of a second or two, and only then is it
known where the next one begins.

What is not listed yet is cut in two wherever a thread has nothing to do. Nobody knows how the keys
lie between two of them, so a cut is half-way in the characters seen so far; one that turns out to
have nothing on one side costs a request, and the next cut lies in the other half. Where the end is
not known either, half the length of a key is taken to be common to the ones that follow. So digits,
hex, `IMG_0001` and a single long folder all come to be divided.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from bintally.storage.place import Entry

__all__ = ["Page", "is_plain", "key_between", "list_in_parallel"]

DEPTH = 8
"""Characters by which keys are compared, after those that they have in common."""
TOP = "~"
"""Above all other characters that keys usually have."""


@dataclass(frozen=True)
class Page:
    """An answer to a listing."""

    entries: Sequence[Entry]
    """By key ascending."""
    last: str | None
    """The last key, where more may follow it."""


def list_in_parallel(
    page: Callable[[str], Page], after: str, folder: str, threads: int
) -> Iterator[Entry]:
    """The objects whose key is above `after`, and begins with `folder` as `after` does.

    `page` lists the first keys above one; it is called from so many threads.
    """
    characters: set[str] = set()
    with ThreadPoolExecutor(threads) as pool:
        # Ranges of keys that are being listed: above the first key, and not above the second.
        running: dict[Future[Page], tuple[str, str | None]] = {
            pool.submit(page, after): (after, None)
        }
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            found: list[Entry] = []
            left: deque[tuple[str, str | None]] = deque()
            for future in done:
                _, end = running.pop(future)
                answer = future.result()
                for entry in answer.entries:
                    characters.update(entry.path[len(folder) :])
                    if end is None or entry.path <= end:
                        found.append(entry)
                if answer.last is not None and (end is None or answer.last < end):
                    left.append((answer.last, end))
            whole: list[tuple[str, str | None]] = []
            while left and len(running) + len(left) + len(whole) < threads:
                start, end = left.popleft()
                middle = key_between(start, end, folder, sorted(characters - {"/"}))
                if middle is None:
                    whole.append((start, end))
                else:
                    left += [(start, middle), (middle, end)]
            for start, end in [*left, *whole]:
                running[pool.submit(page, start)] = (start, end)
            yield from found


def key_between(low: str, high: str | None, folder: str, characters: Sequence[str]) -> str | None:
    """A key about half-way between two that begin with `folder`; None where there is no such.

    A `high` of None is the folder's end. `characters`, ascending, are those that keys consist of.
    """
    if high is None:
        key = low[: (len(folder) + len(low)) // 2] + TOP
        return key if low < key else None
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(low, high, strict=False))
    common = "".join(character for character, _ in same)
    base = len(characters) + 1

    def number(key: str) -> int:
        digits = [bisect_right(characters, c) for c in key[len(common) :][:DEPTH]]
        digits += [0] * (DEPTH - len(digits))
        return sum(digit * base ** (DEPTH - 1 - place) for place, digit in enumerate(digits))

    middle = (number(low) + number(high)) // 2
    key = common
    for place in range(DEPTH):
        digit = middle // base ** (DEPTH - 1 - place) % base
        if digit == 0:
            break
        key += characters[digit - 1]
    return key if low < key < high and is_plain(key) else None


def is_plain(key: str) -> bool:
    """Whether obstore can name a key: no part of it is empty, `.` or `..`, or has control
    characters."""
    return all(part not in ("", ".", "..") for part in key.split("/")) and not any(
        ord(c) < 32 or ord(c) == 127 for c in key
    )
