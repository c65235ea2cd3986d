"""The photos that are loaded: rendered or given, and in every form that a contestant reads."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.loader.epoch import LEAST_BATCHES
from benchmarks.loader.peers import PEERS
from benchmarks.loader.workload import BATCH_SIZE, PREPROCESSING, Workload
from bintally.errors import UsageError
from bintally.terminal.progress import say

__all__ = ["check", "elsewhere", "prepare", "render", "store_small"]


def check(shards: str) -> None:
    from bintally.dataset.manifest import read_dataset
    from bintally.storage.opening import open_place

    num_photos = read_dataset(open_place(shards)).splits["train"].samples
    least = (LEAST_BATCHES - 1) * BATCH_SIZE
    if num_photos <= least:
        raise UsageError(
            f"--shards {shards}: its train split has {num_photos:,} photos; more than {least} are "
            f"needed, for {LEAST_BATCHES} batches"
        )


def render(scratch: Path, photos_per_core: int) -> str:
    """A dataset whose photos are all in the train split, in equal shards for every worker."""
    from bintally.storage.opening import open_place
    from sharding.build import build
    from sharding.distribute import Processes
    from sharding.planning.options import Options
    from sharding.planning.plan import make_plan
    from sharding.source.layout import read_source
    from synthetic.synthesize import synthesize

    num_cores = os.cpu_count() or 1
    num_images = photos_per_core * num_cores
    say(f"rendering {num_images:,} photos")
    source, destination = open_place(scratch / "bucket"), open_place(scratch / "shards")
    synthesize(source, images=num_images, seed=0)
    options: dict[str, Any] = {"split": (1.0, 0.0, 0.0), "group": "none"}
    # webdataset deals whole shards to its workers: unequal ones would hold it up.
    rows = read_source(source, Options(), Processes(1), 8)
    plan = make_plan(rows, Options(**options))
    num_photos = sum(len(shard.rows) for shard in plan.shards)
    options["shard_samples"] = -(-num_photos // (2 * num_cores))
    build(source, destination, Options(**options), distributor=Processes(1), connections=8)
    return str(destination)


def prepare(shards: str, scratch: Path, device: Literal["cpu", "cuda"]) -> Workload:
    """Unpacks the train split for ImageFolder, and writes what other peers read."""
    from bintally.dataset.manifest import read_dataset
    from bintally.dataset.samples import Samples
    from bintally.storage.opening import open_place

    place = open_place(shards)
    dataset = read_dataset(place)
    samples = Samples(place, dataset, "train")
    photos = scratch / "photos"
    # Numbered by class: by its name alone, ImageFolder would put class 10 before class 2.
    for number in range(len(dataset.classes)):
        (photos / f"{number:03d}").mkdir(parents=True)
    say(f"unpacking {len(samples):,} photos for ImageFolder")
    labels = samples.labels(range(len(samples)), dataset.classes)
    for index, label in enumerate(labels):
        path = photos / f"{label:03d}" / f"{samples.ids[index]}.jpg"
        path.write_bytes(samples.photo(index).tobytes())
    split = dataset.splits["train"]
    root = Path(shards).resolve()
    workload = Workload(
        shards=root,
        tars=tuple(str(root / shard.path) for shard in split.shards),
        indexes=tuple(str(root / shard.index) for shard in split.shards),
        image_folder=photos,
        classes=tuple(map(int, dataset.classes)),
        class_counts=tuple(split.class_counts[str(count)] for count in dataset.classes),
        device=device,
        num_workers=os.cpu_count() or 1,
        scratch=scratch,
    )
    for peer in PEERS:
        if peer.installed:
            say(f"writing what {peer.name} reads")
            peer.prepare(workload)
    return workload


def store_small(workload: Workload, folder: Path) -> Workload:
    """The same photos, order and shards, stored at the size that the model takes."""
    from bintally.dataset.index import format_index
    from bintally.dataset.manifest import CATALOG, DATASET, read_dataset
    from bintally.dataset.photo import Resize, prepare_photo
    from bintally.dataset.samples import Samples
    from bintally.storage.opening import open_place
    from sharding.tar import TarBuilder

    source, destination = open_place(workload.shards), open_place(folder)
    dataset = read_dataset(source)
    samples = Samples(source, dataset, "train")
    size = PREPROCESSING.image_size
    say(f"storing them at {size}×{size}")
    shards = []
    indices = iter(range(len(samples)))
    for shard in dataset.splits["train"].shards:
        tar = TarBuilder()
        for index in [next(indices) for _ in range(shard.samples)]:
            photo = prepare_photo(samples.photo(index).tobytes(), Resize(size, size))
            count = b"%d" % samples.count(index)
            tar.add(samples.ids[index], [("jpg", photo.data), ("cls", count), ("json", b"{}")])
        pieces = tar.finish()
        destination.put(shard.path, *pieces)
        destination.put(shard.index, format_index(tar.samples))
        written = b"".join(pieces)
        digest = hashlib.sha256(written).hexdigest()
        shards.append(replace(shard, bytes=len(written), sha256=digest))
    train = replace(dataset.splits["train"], shards=shards)
    smaller = replace(dataset, splits={**dataset.splits, "train": train})
    destination.put(CATALOG, source.get(CATALOG))
    destination.put(DATASET, smaller.to_json())
    return elsewhere(workload, folder)


def elsewhere(workload: Workload, folder: Path) -> Workload:
    """The same shards in another folder."""

    def moved(files: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(folder / Path(file).relative_to(workload.shards)) for file in files)

    tars, indexes = moved(workload.tars), moved(workload.indexes)
    return replace(workload, shards=folder, tars=tars, indexes=indexes)
