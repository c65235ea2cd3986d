"""Writes an invented bucket in the layout of the Amazon Bin Image Dataset (ABID).

No ABID photo may be part of this project, so what is shown or tested without a download is drawn:
``bin-images/<id>.jpg`` and ``metadata/<id>.json``, with ABID's habits and faults. Two series of
ids, counts in ABID's proportions, neighbouring ids that show one bin before and after a pick, and
a few broken files. What a photo shows depends on the seed and the number of its bin alone, so the
bytes are the same whatever the number of workers.
"""

import multiprocessing
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from bintally.errors import UsageError
from bintally.machine import num_cores
from bintally.storage.lease import Lease
from bintally.storage.opening import take_lease
from bintally.storage.place import Place

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Summary", "synthesize"]

_COUNT_WEIGHTS = (9_701, 41_147, 76_863, 90_058, 80_550, 62_448)
"""ABID's photos of 0 to 5 items."""
_SHARE_UP_TO_5 = 0.8
_MOST_ITEMS = 14
_RUN_LENGTHS = ((1, 0.42), (2, 0.46), (3, 0.12))
"""Photos of one bin in a row and their share of the bins: 73% of the photos are in a run."""
_STEPS = ((1, 0.76), (2, 0.18), (3, 0.06))
"""How many items a pick or a stow moves."""
_UNPADDED = (1, 10, 100, 242)
"""Numbers the unpadded series always has; the padded series has no gap or fault there."""
_GAP = 0.004
_MISCOUNT_EVERY = 1_667
"""In 6 of 10,000 files the quantities of the products do not add up to the label."""
_CHUNK = 24
_PUTS_IN_FLIGHT = 4

_PLAN_STREAM, _LOOK_STREAM, _PHOTO_STREAM = 1, 2, 3

Fault = Literal[
    "no_json", "no_image", "truncated_image", "invalid_json", "negative_quantity", "empty_image"
]


@dataclass(frozen=True)
class Summary:
    """What was written."""

    images: int
    """Good photos of the padded series, each with valid metadata."""
    unpadded: int
    """Good photos of the unpadded series."""
    num_bytes: int
    counts: tuple[int, ...]
    """How many good photos, of both series, show 0, 1, 2 … items."""
    faults: dict[str, int]
    """How many ids have which fault."""

    def __str__(self) -> str:
        """Return the summary in one line."""
        faults = ", ".join(f"{number} {name}" for name, number in self.faults.items())
        return (
            f"{self.images + self.unpadded:,} photos ({self.unpadded} of the unpadded series), "
            f"{self.num_bytes / 1e6:,.1f} MB; faults: {faults or 'none'}"
        )


@dataclass(frozen=True)
class _Photo:
    """One id to write: the `state`-th photo of a bin that holds `counts` items over time."""

    id: str
    bin_number: int
    counts: tuple[int, ...]
    state: int
    fault: Fault | None = None
    padded: bool = True
    miscounted: bool = False

    @property
    def count(self) -> int:
        return self.counts[self.state]


def synthesize(
    output: Place, *, images: int = 1200, seed: int = 0, workers: int | None = None
) -> Summary:
    """Write an invented bucket with `images` good photos of the padded series to `output`.

    From 100 images on there is an unpadded series and a fixed number of faulty ids beside them.
    Returns what was written. Raises `UsageError` if the place is not empty: it may hold photos.
    """
    if images < 1:
        raise ValueError(f"images must be at least 1, not {images}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, not {seed}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    with take_lease(output) as lease:
        if (held := next(iter(output.entries()), None)) is not None:
            raise UsageError(
                f"{output} holds {held.path}; a bucket is drawn into an empty place only: choose "
                "another --output"
            )
        photos = _plan(images, seed)
        num_bytes = _write_all(lease, seed, photos, workers or num_cores())
    good = Counter(photo.count for photo in photos if photo.fault is None)
    return Summary(
        images=images,
        unpadded=sum(not photo.padded for photo in photos),
        num_bytes=num_bytes,
        counts=tuple(good[count] for count in range(max(good) + 1)),
        faults=dict(Counter(photo.fault for photo in photos if photo.fault is not None)),
    )


def _write_all(lease: Lease, seed: int, photos: Sequence[_Photo], workers: int) -> int:
    """Draw and write `photos` in several processes; return their size in bytes."""
    from tqdm import tqdm

    chunks = [photos[start : start + _CHUNK] for start in range(0, len(photos), _CHUNK)]
    num_bytes = 0
    pool = ProcessPoolExecutor(
        min(workers, len(chunks)),
        # Forking a process that has threads, as a caller of a progress bar or of S3 has, can hang.
        mp_context=multiprocessing.get_context("spawn"),
    )
    try:
        with tqdm(total=len(photos), unit="photo", disable=None) as progress:
            sizes = {pool.submit(_write, lease, seed, chunk): len(chunk) for chunk in chunks}
            for written in as_completed(sizes):
                num_bytes += written.result()
                progress.update(sizes[written])
    finally:
        pool.shutdown(cancel_futures=True)
    return num_bytes


# Which ids there are, and which of them show the same bin


def _rng(*key: int) -> "np.random.Generator":
    import numpy as np

    return np.random.Generator(np.random.PCG64(key))


def _plan(images: int, seed: int) -> list[_Photo]:
    photos: list[_Photo] = []
    faults = _faults(images)
    number, bin_number, good = 1, 0, 0
    while good < images:
        rng = _rng(seed, _PLAN_STREAM, bin_number)
        if number not in _UNPADDED and rng.random() < _GAP:
            number += 1
        if faults and good >= faults[0][0] and number not in _UNPADDED:
            _, fault = faults.pop(0)
            counts = _run_counts(seed, bin_number, 1, rng)
            photos.append(_Photo(f"{number:05d}", bin_number, counts, 0, fault))
            number += 1
        else:
            counts = _run_counts(seed, bin_number, images - good, rng)
            for state in range(len(counts)):
                miscounted = good % _MISCOUNT_EVERY == _MISCOUNT_EVERY // 2
                photos.append(
                    _Photo(f"{number:05d}", bin_number, counts, state, miscounted=miscounted)
                )
                number += 1
                good += 1
        bin_number += 1
    return photos + _unpadded_plan(photos, images, seed, bin_number)


def _faults(images: int) -> list[tuple[float, Fault]]:
    """Return the faults, spread evenly, each with the number of good photos it comes after."""
    if images < 100:
        return []
    numbers: dict[Fault, int] = {
        "truncated_image": 1,
        "invalid_json": 1,
        "negative_quantity": 1,
        "empty_image": 1,
        "no_json": max(2, images // 300),
        "no_image": max(1, images // 600),
    }
    kinds = [fault for fault, number in numbers.items() for _ in range(number)]
    return [((index + 0.5) * images / len(kinds), fault) for index, fault in enumerate(kinds)]


def _unpadded_plan(
    padded: Sequence[_Photo], images: int, seed: int, bin_number: int
) -> list[_Photo]:
    if images < 100:
        return []
    rng = _rng(seed, _PLAN_STREAM, bin_number)
    twins = {int(photo.id): photo.count for photo in padded}
    # From 10,000 on, both series would write the same id.
    others = [n for n in range(2, min(max(twins), 9_999) + 1) if n not in _UNPADDED]
    extra = max(0, images // 100 - len(_UNPADDED))
    drawn = rng.choice(others, min(extra, len(others)), replace=False).tolist()
    photos = []
    for number in sorted([*_UNPADDED, *drawn]):
        count = _count_at(rng.random())
        while count == twins.get(number):
            count = _count_at(rng.random())
        photos.append(_Photo(str(number), bin_number, (count,), 0, padded=False))
        bin_number += 1
    return photos


@lru_cache(maxsize=1)
def _count_shares() -> tuple[float, ...]:
    low = [_SHARE_UP_TO_5 * weight / sum(_COUNT_WEIGHTS) for weight in _COUNT_WEIGHTS]
    tail = [0.75**step for step in range(_MOST_ITEMS - len(low) + 1)]
    return (*low, *((1 - _SHARE_UP_TO_5) * share / sum(tail) for share in tail))


def _quantile(shares: Sequence[float], at: float) -> int:
    """Return the index at which the running sum of `shares` passes `at`, from 0 to 1."""
    for index, share in enumerate(shares):
        at -= share
        if at < 0:
            return index
    return len(shares) - 1


def _count_at(at: float) -> int:
    return _quantile(_count_shares(), at)


def _run_counts(
    seed: int, bin_number: int, at_most: int, rng: "np.random.Generator"
) -> tuple[int, ...]:
    """Return the counts of a bin's photos, one to three of them."""
    # A sequence that fills the unit square evenly: even a few hundred photos have ABID's
    # proportions, and still bin n does not depend on the bins before it.
    start = _rng(seed).random(2)
    first = _count_at((start[0] + bin_number * 0.7548776662466927) % 1)
    pick = (start[1] + bin_number * 0.5698402909980532) % 1
    length = min(at_most, _RUN_LENGTHS[_quantile([s for _, s in _RUN_LENGTHS], pick)][0])
    counts = [first]
    while len(counts) < length:
        counts.append(_next_count(counts[-1], rng))
    return tuple(counts)


def _next_count(count: int, rng: "np.random.Generator") -> int:
    """Return the count after a pick or a stow.

    A Metropolis step, so that the later photos of a run have the same distribution of counts as
    the first: a move to a rarer count is refused now and then, and one item is exchanged instead.
    """
    shares = _count_shares()
    step = _STEPS[_quantile([share for _, share in _STEPS], rng.random())][0]
    moved = count + (step if rng.random() < 0.5 else -step)
    if 0 <= moved <= _MOST_ITEMS and rng.random() < shares[moved] / shares[count]:
        return moved
    # The exchange of a bin's only item would leave nothing that shows it is the same bin.
    return count if count > 1 else count + 1


# The files


def _files(seed: int, photo: _Photo) -> dict[str, bytes]:
    """Return the files of one id by path: two, or fewer or spoilt ones if it has a fault."""
    from synthetic.products import bin_metadata, invent_bin, photographed
    from synthetic.render import render_bin

    shelf = invent_bin(photo.counts, _rng(seed, _LOOK_STREAM, photo.bin_number))
    present = shelf.present[photo.state]
    rng = _rng(seed, _PHOTO_STREAM, photo.bin_number, photo.state)
    image = render_bin(photographed(shelf, photo.state, rng))
    quantities = Counter(shelf.products[index] for index in present)
    if photo.miscounted and present:
        quantities[shelf.products[present[0]]] += 1
    metadata = bin_metadata(
        quantities,
        -1 if photo.fault == "negative_quantity" else photo.count,
        image_fname=None if photo.padded else f"{photo.id}.jpg",
    )
    files = {f"bin-images/{photo.id}.jpg": image, f"metadata/{photo.id}.json": metadata}
    photo_path, json_path = files
    match photo.fault:
        case "no_json":
            del files[json_path]
        case "no_image":
            del files[photo_path]
        case "truncated_image":
            files[photo_path] = image[: len(image) * 6 // 10]
        case "empty_image":
            files[photo_path] = b""
        case "invalid_json":
            files[json_path] = metadata[: len(metadata) // 2]
        case "negative_quantity" | None:
            pass
    return files


def _write(lease: Lease, seed: int, photos: Sequence[_Photo]) -> int:
    """Draw and write `photos`; return their size in bytes, that of their JSON included."""
    num_bytes = 0
    with ThreadPoolExecutor(_PUTS_IN_FLIGHT) as threads:
        puts = []
        for photo in photos:
            for path, data in _files(seed, photo).items():
                puts.append(threads.submit(lease.put, path, data))
                num_bytes += len(data)
        for put in puts:
            put.result()
    return num_bytes
