"""The loader benchmark: `python -m benchmarks loader [--quick]`, see `Loader` in `__main__`."""

from __future__ import annotations

import math
import os
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks.environment import read_environment
from benchmarks.loader.contestants import (
    BATCH_SIZE,
    PREPROCESSING,
    SHUFFLE_BUFFER,
    Workload,
    dali_reader,
    image_folder,
    ours,
    wds,
)
from benchmarks.loader.limit import limit
from benchmarks.loader.peers import PEERS
from benchmarks.measure import Contestant, take_turns
from benchmarks.plot import publish
from benchmarks.results import Metric, Report, results_folder
from bintally.errors import UsageError
from bintally.terminal.progress import say

__all__ = ["run"]

LIBRARIES = (
    "torch",
    "torchvision",
    "nvidia-dali-cuda130",
    "webdataset",
    "pillow",
    "simplejpeg",
    "numba",
    "numpy",
    *sorted({peer.distribution for peer in PEERS}),
)
METRICS = (
    Metric("photos_per_s", "photos/s"),
    Metric("cpu_s_per_1000", "CPU s per 1,000 photos", 2),
    Metric("peak_memory_mib", "peak memory, MiB"),
    Metric("first_batch_s", "first batch, s", 2),
)
PHOTOS_PER_CORE = 750
PHOTOS_PER_CORE_QUICK = 200
TIMES_ON_GPU = 8
"""A GPU decodes that many times what the cores beside it do."""


def run(
    *,
    quick: bool,
    output: Path | None,
    shards: str | None,
    stored_small: Path | None = None,
    num_rounds: int | None = None,
    seconds: float = math.inf,
) -> int:
    """Measures all loaders and writes the results; 1 where a contestant failed.

    `stored_small` is the dataset `shards` once more, its photos stored at the size that the model
    takes, where there is such a one already; `seconds` is how long all may take.
    """
    began = time.monotonic()
    num_rounds = num_rounds or (2 if quick else 5)
    if shards is not None:
        _check(shards)
    environment = read_environment(LIBRARIES)
    folder = results_folder(output, environment, quick)
    with tempfile.TemporaryDirectory(prefix="bintally-loader-") as temporary:
        scratch = Path(temporary)
        photos_per_core = PHOTOS_PER_CORE_QUICK if quick else PHOTOS_PER_CORE
        place = shards or _render(
            scratch, photos_per_core * (TIMES_ON_GPU if environment.gpu else 1)
        )
        workload = _prepare(place, scratch, "cuda" if environment.gpu else "cpu")
        if stored_small is None:
            small = _store_small(workload, scratch / "small")
        else:
            small = _elsewhere(workload, stored_small)
        results = take_turns(
            _contestants(workload, small),
            num_rounds,
            task="loader",
            num_warmups=1 if math.isinf(seconds) else 0,
            seconds=seconds - (time.monotonic() - began),
        )
        report = Report(
            name="loader",
            title="Loaders: from photos on disk to batches for the model",
            metrics=METRICS,
            workload=_describe(workload, rendered=shards is None),
            notes=_notes(workload),
            num_rounds=num_rounds,
            quick=quick,
            environment=environment,
            results=results,
        )
    return publish(report, folder)


def _check(shards: str) -> None:
    from bintally.dataset.manifest import read_dataset
    from bintally.storage.opening import open_place

    num_photos = read_dataset(open_place(shards)).splits["train"].samples
    if num_photos <= BATCH_SIZE:
        raise UsageError(
            f"--shards {shards}: its train split has {num_photos:,} photos; more than a batch "
            f"of {BATCH_SIZE} are needed, for the first one does not count"
        )


def _render(scratch: Path, photos_per_core: int) -> str:
    """A dataset whose photos are all in the train split, in equal shards for every worker."""
    from bintally.storage.opening import open_place
    from sharding.build import build
    from sharding.distribute import Processes
    from sharding.planning.plan import Options, make_plan
    from sharding.source.catalog import read_source
    from synthetic.synthesize import synthesize

    num_cores = os.cpu_count() or 1
    num_images = photos_per_core * num_cores
    say(f"rendering {num_images:,} photos")
    source, destination = open_place(scratch / "bucket"), open_place(scratch / "shards")
    synthesize(source, images=num_images, seed=0)
    options: dict[str, Any] = {"split": (1.0, 0.0, 0.0), "group": "none"}
    # webdataset deals whole shards to its workers: unequal ones would hold it up.
    plan = make_plan(read_source(source, Processes(1), 8), Options(**options))
    num_photos = sum(len(shard.ids) for shard in plan.shards)
    options["shard_samples"] = -(-num_photos // (2 * num_cores))
    build(source, destination, Options(**options), distributor=Processes(1), connections=8)
    return str(destination)


def _prepare(shards: str, scratch: Path, device: Literal["cpu", "cuda"]) -> Workload:
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


def _store_small(workload: Workload, folder: Path) -> Workload:
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
        shards.append(replace(shard, bytes=sum(map(len, pieces))))
    train = replace(dataset.splits["train"], shards=shards)
    smaller = replace(dataset, splits={**dataset.splits, "train": train})
    destination.put(CATALOG, source.get(CATALOG))
    destination.put(DATASET, smaller.to_json())
    return _elsewhere(workload, folder)


def _elsewhere(workload: Workload, folder: Path) -> Workload:
    """The same shards in another folder."""

    def moved(files: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(folder / Path(file).relative_to(workload.shards)) for file in files)

    tars, indexes = moved(workload.tars), moved(workload.indexes)
    return replace(workload, shards=folder, tars=tars, indexes=indexes)


def _contestants(workload: Workload, small: Workload) -> list[Contestant]:
    on_gpu = workload.device == "cuda"
    workers = workload.num_workers
    decode = "mixed (GPU)" if on_gpu else "CPU"
    copied = {"to_the_gpu": "pinned memory, asynchronous copy"} if on_gpu else {}
    return [
        Contestant(
            "ours, CPU engine",
            partial(ours, workload, "cpu"),
            {
                "decode": "simplejpeg (libjpeg-turbo), then one compiled pass",
                "antialiased": True,
                "threads": workers,
                "order": "exact global permutation",
                "layout": "channels last",
                **({"to_the_gpu": "uint8, normalised there"} if on_gpu else {}),
            },
            "ours",
        ),
        Contestant(
            "ours, DALI engine",
            partial(ours, workload, "dali"),
            {
                "decode": f"DALI, {decode}",
                "antialiased": True,
                "threads": workers,
                "order": "exact global permutation",
                "layout": "channels last",
            },
            "ours",
        ),
        Contestant(
            "ImageFolder",
            partial(image_folder, workload),
            {
                "decode": "PIL",
                "antialiased": True,
                "workers": workers,
                "order": "DataLoader(shuffle=True)",
                "layout": "channels first",
                **copied,
            },
        ),
        Contestant(
            "DALI's reader",
            partial(dali_reader, workload),
            {
                "decode": f"DALI, {decode}",
                "antialiased": True,
                "threads": workers,
                "order": f"random_shuffle, buffer of {SHUFFLE_BUFFER} photos",
                "layout": "channels first",
            },
        ),
        Contestant(
            "webdataset",
            partial(wds, workload),
            {
                "decode": "PIL",
                "antialiased": True,
                "workers": workload.num_wds_workers,
                "order": f"shards shuffled, buffer of {SHUFFLE_BUFFER} photos a worker",
                "layout": "channels first",
                **copied,
            },
        ),
        *(
            Contestant(peer.name, partial(peer.run, workload), peer.settings)
            for peer in PEERS
            if peer.installed and not on_gpu
        ),
        Contestant("CPU engine, stored at 224", partial(ours, small, "cpu"), SMALL, "ours"),
        Contestant("DALI engine, stored at 224", partial(ours, small, "dali"), SMALL, "ours"),
        Contestant(
            "DALI's reader, stored at 224",
            partial(dali_reader, small, resize=False),
            {**SMALL, "resize": "left out"},
        ),
        Contestant(
            "CPU limit",
            partial(limit, workload),
            {
                "decode": "the CPU engine's own calls",
                "antialiased": True,
                "processes": workers,
                "left_out": "order, flips, batches" + (", the copy to the GPU" if on_gpu else ""),
            },
            "limit",
        ),
    ]


SMALL = {"shards": "made with --resize 224x224, JPEG quality 95"}


def _describe(workload: Workload, rendered: bool) -> dict[str, Any]:
    num_bytes = sum(path.stat().st_size for path in workload.image_folder.rglob("*.jpg"))
    size = PREPROCESSING.image_size
    return {
        "photos": workload.num_photos,
        "source": "rendered bins" if rendered else "the dataset that --shards names",
        "mean_photo": f"{num_bytes / workload.num_photos / 1000:.1f} kB",
        "shards": len(workload.tars),
        "work": f"decode, stretch to {size}×{size} (bilinear), flip with p = 0.5, normalise",
        "batch": f"{BATCH_SIZE} × 3 × {size} × {size} float32",
        "device": workload.device,
        "epochs": "one, shuffled, from the page cache",
    }


def _notes(workload: Workload) -> list[str]:
    notes = [
        f"photos/s: wall time over the epoch without its first {workload.num_workers} batches, "
        "one for each worker. Every run counted that each class came with all its photos, and with "
        "ours that each sample came once; a loader that fails has an error here, not a number.",
        "CPU s: user and system time of all processes for the whole epoch, start included.",
        "Peak memory: the process's peak, PyTorch itself included, and what its workers have to "
        "themselves towards the epoch's end.",
        "First batch: from the loader's making, with all imports done before.",
        "CPU limit: what the CPU engine does to a photo, in a bare loop in a process for each "
        "core.",
    ]
    if workload.device == "cuda":
        notes.append("A loader that decodes on the GPU may pass the CPU's limit.")
    return notes
