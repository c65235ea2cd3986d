"""What building all of ABID costs the one process that holds all rows: a `build` of an invented
bucket.

All is done but the fetching: objects are listed, metadata is parsed and kept, shards are checked,
written and recorded by workers, catalog and `dataset.json` made.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.measure import Contestant, Measurement, peak_memory_mib, take_turns
from benchmarks.numbers import duration
from benchmarks.sharding.invented import MOST_PRODUCTS, Bins, class_totals, invent_bins
from bintally.ray_cluster import Job
from bintally.storage.folder import Folder
from bintally.storage.place import Entry, Place
from bintally.terminal.progress import say
from sharding.build import build
from sharding.columns import prepare_arrow
from sharding.distribute import Processes
from sharding.planning.options import Options
from sharding.source.abid.bucket import IMAGES, METADATA

__all__ = [
    "InventedBucket",
    "describe_driver",
    "describe_growth",
    "drive",
    "grow",
    "invent_metadata",
    "measure_driver",
    "prepare_bucket",
]

T = TypeVar("T")

WORKERS = 2
CONNECTIONS = 64
TIMEOUT_S = 3600.0
PHASES = ("listing", "metadata", "plan", "shards", "finish")


class InventedBucket(Place):
    """A bucket in ABID's layout whose objects are made when they are asked for."""

    def __init__(self, num_images: int, folder: Path) -> None:
        """`folder` is where `prepare_bucket` has written."""
        self.url = f"invented://{num_images}"
        self.num_images = num_images
        self.photo = folder / PHOTO
        self.listing = folder / LISTING

    def check(self) -> None:
        pass

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        assert not prefix, "is listed whole"
        size = self.photo.stat().st_size
        with self.listing.open() as lines:
            for number, line in enumerate(lines, 1):
                json_size, json_version, version = line.split()
                yield Entry(f"{IMAGES}/{number:05d}.jpg", size, version)
                yield Entry(f"{METADATA}/{number:05d}.json", int(json_size), json_version)

    def get(self, path: str) -> bytes:
        folder, _, name = path.partition("/")
        if folder == IMAGES:
            return self.photo.read_bytes()
        return invent_metadata(self.num_images, int(name.partition(".")[0]))

    def put(self, path: str, *pieces: bytes) -> None:
        raise NotImplementedError

    def delete(self, path: str) -> None:
        raise NotImplementedError


PHOTO, LISTING = "photo.jpg", "listing.txt"


def prepare_bucket(folder: Path, num_images: int) -> None:
    """Writes what takes time to invent: the photo, and of all objects what a listing tells, with
    the MD5 of metadata for its version, as S3 has it."""
    from PIL import Image

    Image.new("RGB", (16, 16), (120, 90, 60)).save(folder / PHOTO)
    with (folder / LISTING).open("w") as lines:
        for number in range(1, num_images + 1):
            data = invent_metadata(num_images, number)
            lines.write(f"{len(data)} {_md5(data)} {_md5(str(number).encode())}\n")


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def invent_metadata(num_images: int, number: int) -> bytes:
    """The JSON of a photo, in ABID's form and of its size: 2 kB on average."""
    bins = _bins(num_images)
    count, run = int(bins.counts[number - 1]), int(bins.runs[number - 1])
    products = [f"B{MOST_PRODUCTS * run + rank:09d}" for rank in range(min(count, MOST_PRODUCTS))]
    quantities = [count - len(products) + 1] + [1] * len(products)
    entries = map(_product, products, quantities)
    return BIN.format(products=",".join(entries), count=count).encode()


def _product(name: str, quantity: int) -> str:
    drawn = hashlib.blake2b(name.encode(), digest_size=24).digest()
    title = " ".join(WORDS[byte % len(WORDS)] for byte in drawn[:12])
    sizes = (int.from_bytes(drawn[at : at + 3]) / 1_000_003 for at in (12, 15, 18, 21))
    return PRODUCT.format(*sizes, name=name, title=title, quantity=quantity)


# Not of Python's encoder, which takes ten times as long where it indents.
BIN = """{{
    "BIN_FCSKU_DATA": {{{products}
    }},
    "EXPECTED_QUANTITY": {count}
}}"""
PRODUCT = """
        "{name}": {{
            "asin": "{name}",
            "height": {{
                "unit": "IN",
                "value": {}
            }},
            "length": {{
                "unit": "IN",
                "value": {}
            }},
            "name": "{title}",
            "normalizedName": "{title}",
            "quantity": {quantity},
            "weight": {{
                "unit": "pounds",
                "value": {}
            }},
            "width": {{
                "unit": "IN",
                "value": {}
            }}
        }}"""
TITLES = (
    "Adjustable Aluminum Baby Battery Black Blue Book Bottle Box Cable Case Ceramic Charger "
    "Classic Clear Coffee Cotton Cover Deluxe Digital Edition Filter Fitness Glass Gray Heavy Inch "
    "Indoor Kit LED Large Leather Light Men's Mini Multi Organic Outdoor Pack Paper Pink Plastic "
    "Portable Premium Red Screen Set Silicone Silver Small Spray Stainless Steel Storage Tablet "
    "Tool Toy Travel USB Vitamin Water White Women's Wood"
)
WORDS = TITLES.split()


@cache
def _bins(num_images: int) -> Bins:
    return invent_bins(num_images)


class _Watched(Processes):
    """Knows when jobs began and ended, and the memory that this process had had by then."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.marks: list[tuple[float, float]] = []

    def mark(self) -> None:
        self.marks.append((time.perf_counter(), peak_memory_mib()))

    def run(self, jobs: Iterable[Job[T]]) -> Iterator[T]:
        self.mark()
        yield from super().run(jobs)
        self.mark()


def drive(num_images: int, scratch: Path) -> Measurement:
    """Builds such a bucket into a folder, this process being the driver."""
    os.environ["BINTALLY_CACHE"] = str(scratch / "cache")
    prepare_arrow()  # As the command does.
    watched = _Watched(WORKERS)
    watched.mark()
    result = build(
        InventedBucket(num_images, scratch),
        Folder(scratch / "shards"),
        Options(),
        distributor=watched,
        connections=CONNECTIONS,
    )
    watched.mark()
    sharded = sum(split.samples for split in result.dataset.splits.values())
    assert sharded == sum(class_totals(num_images)[:6])
    measured = {"peak_memory_mib": peak_memory_mib()}
    for phase, ((began, _), (ended, peak_mib)) in zip(PHASES, pairwise(watched.marks), strict=True):
        measured |= {f"{phase}_s": ended - began, f"{phase}_mib": peak_mib}
    return measured


def measure_driver(num_images: int) -> dict[str, Any]:
    """Time and memory of a build, in a process of its own. Minutes for all of ABID."""
    say(f"building from an invented bucket of {num_images:,} photos")
    with tempfile.TemporaryDirectory(prefix="bintally-driver-") as temporary:
        scratch = Path(temporary)
        prepare_bucket(scratch, num_images)
        contestant = Contestant("driver", partial(drive, num_images, scratch), {})
        (result,) = take_turns([contestant], 1, task="driver", num_warmups=0, timeout_s=TIMEOUT_S)
    if result.error is not None:
        return {"error": result.error}
    return {"images": num_images, "workers": WORKERS, **result.rounds[0]}


def describe_driver(measured: Mapping[str, Any]) -> str:
    phases = ", ".join(
        f"{phase} {measured[f'{phase}_s']:.1f} s ({measured[f'{phase}_mib']:,.0f} MiB)"
        for phase in PHASES
    )
    return (
        f"A build of {measured['images']:,} photos with {measured['workers']} workers, all but the "
        f"fetching: peak {measured['peak_memory_mib']:,.0f} MiB in the process that holds all "
        f"rows. By phase, with the peak until its end: {phases}. The photos are tiny, their JSON "
        "is invented and of ABID's size."
    )


def grow(
    plan: Mapping[str, Any], large_plan: Mapping[str, Any], driver: Mapping[str, Any]
) -> dict[str, Any]:
    """What the driver takes by itself for any number of photos: straight lines through two plans,
    and on top, in proportion, what a whole build took more at the size of the first."""
    if failed := [measured for measured in (plan, large_plan, driver) if "error" in measured]:
        return {"error": f"not known without the others: {failed[0]['error']}"}
    million = plan["images"] / 1e6, large_plan["images"] / 1e6
    planned_s = [measured["plan_s"] + measured["catalog_s"] for measured in (plan, large_plan)]
    mib = [measured["peak_memory_mib"] for measured in (plan, large_plan)]
    s_per_million, mib_per_million = (
        (more - few) / (million[1] - million[0]) for few, more in (planned_s, mib)
    )
    alone_s = sum(driver[f"{phase}_s"] for phase in ("listing", "plan", "finish"))
    return {
        "start_s": planned_s[0] - s_per_million * million[0],
        "s_per_million": s_per_million + (alone_s - planned_s[0]) / million[0],
        "start_mib": mib[0] - mib_per_million * million[0],
        "mib_per_million": mib_per_million
        + max(0.0, driver["peak_memory_mib"] - mib[0]) / million[0],
    }


def describe_growth(grown: Mapping[str, Any]) -> str:
    sizes = ", ".join(
        f"{name} {duration(grown['start_s'] + million * grown['s_per_million'])} and "
        f"{(grown['start_mib'] + million * grown['mib_per_million']) / 1024:,.1f} GiB"
        for name, million in (("10 million", 10), ("100 million", 100), ("a billion", 1000))
    )
    return (
        f"By straight lines through both plans, and what the build took more, the driver takes by "
        f"itself for {sizes}. This is arithmetic: none of it was run, and beyond some 60 million "
        "photos the versions of objects are more text than a column with offsets of 32 bits holds."
    )
