"""The loader benchmark: `python -m benchmarks loader [--quick]`, see `Loader` in `__main__`."""

from __future__ import annotations

import math
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.environment import read_environment
from benchmarks.loader.contestants import image_folder, ours
from benchmarks.loader.dali import dali_reader
from benchmarks.loader.datasets import check, elsewhere, prepare, render, store_small
from benchmarks.loader.epoch import ACCELERATOR_PER_S, BUSY
from benchmarks.loader.limit import limit
from benchmarks.loader.peers import PEERS, SIMPLEJPEG
from benchmarks.loader.webdataset import wds
from benchmarks.loader.workload import (
    BATCH_SIZE,
    PREPROCESSING,
    SHUFFLE_BUFFER,
    Settings,
    Workload,
)
from benchmarks.measure import Contestant, take_turns
from benchmarks.plot import publish
from benchmarks.results import Metric, Report, results_folder

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
    Metric("photos_per_s_per_core", "photos/s and core"),
    Metric("h100s_at_90", "H100s at 90%", 2),
    Metric("p99_ms", "p99 of the next batch, ms"),
    Metric("first_batch_s", "first batch, s", 2),
    Metric("cpu_s_per_1000", "CPU s per 1,000 photos", 2),
    Metric("peak_memory_mib", "peak memory, MiB"),
)
PHOTOS_PER_CORE = 2000
"""About 30 batches on 2 cores to tell a rate and a p99 by, and as many for the accelerators."""
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
        check(shards)
    environment = read_environment(LIBRARIES)
    folder = results_folder(output, environment, quick)
    with tempfile.TemporaryDirectory(prefix="bintally-loader-") as temporary:
        scratch = Path(temporary)
        photos_per_core = PHOTOS_PER_CORE_QUICK if quick else PHOTOS_PER_CORE
        place = shards or render(
            scratch, photos_per_core * (TIMES_ON_GPU if environment.gpu else 1)
        )
        workload = prepare(place, scratch, "cuda" if environment.gpu else "cpu")
        if stored_small is None:
            small = store_small(workload, scratch / "small")
        else:
            small = elsewhere(workload, stored_small)
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


def _contestants(workload: Workload, small: Workload) -> list[Contestant]:
    on_gpu = workload.device == "cuda"
    workers = workload.num_workers
    decode = "mixed (GPU)" if on_gpu else "CPU"
    copied = {"to_the_gpu": "pinned memory, asynchronous copy"} if on_gpu else {}
    webdataset: Settings = {
        **SIMPLEJPEG,
        "workers": workload.num_wds_workers,
        "order": f"shards shuffled, buffer of {SHUFFLE_BUFFER} photos a worker",
        "layout": "channels last",
        **copied,
    }
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
            "DALI's reader, tuned",
            partial(dali_reader, workload, tuned=True),
            {
                "decode": f"DALI, {decode}",
                "antialiased": True,
                "threads": workers,
                **DALI_TUNED,
            },
        ),
        Contestant("webdataset", partial(wds, workload), webdataset),
        Contestant(
            "webdataset, coarser DCT",
            partial(wds, workload, least=1),
            {
                **webdataset,
                "decode": "simplejpeg, at half its size where what is needed is left: other pixels",
            },
        ),
        *(
            Contestant(peer.name, partial(peer.run, workload), peer.settings)
            for peer in PEERS
            if peer.installed and not on_gpu
        ),
        Contestant(
            "CPU engine, light",
            partial(ours, workload, "cpu", augment="light"),
            {"as": "ours, CPU engine", "augment": "light instead of flip"},
            "ours",
        ),
        Contestant("CPU engine, stored at 224", partial(ours, small, "cpu"), SMALL, "ours"),
        Contestant("DALI engine, stored at 224", partial(ours, small, "dali"), SMALL, "ours"),
        Contestant(
            "DALI's reader, stored at 224",
            partial(dali_reader, small, resize=False, tuned=True),
            {**SMALL, "resize": "left out", **DALI_TUNED},
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


DALI_TUNED: Settings = {
    "exec_dynamic": True,
    "prefetch_queue_depth": 4,
    "order": f"random_shuffle, buffer of {SHUFFLE_BUFFER} photos",
    "layout": "channels first",
}
SMALL: Settings = {"shards": "made with --resize 224x224, JPEG quality 95"}


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
        "photos/s: over half of the epoch, as fast as it comes, after its first "
        f"{workload.num_workers} batches, one for each worker. Every run counted that each class "
        "came with all its photos, and with ours that each sample came once; a loader that fails "
        "has an error here, not a number.",
        "H100s at 90%: over the other half, emulated as MLPerf Storage does for ResNet-50, 400 "
        "photos in 0.224 s, in steps of a batch while which the consumer sleeps. So many of them "
        "as would be busy for 90% of the time at this loader's rate are fed, asleep / (asleep + "
        "waiting) is measured without the first step, and what is told is so many as were busy for "
        "90% at the rate that it held. One such H100 takes "
        f"{ACCELERATOR_PER_S * BUSY:,.0f} photos/s.",
        "p99 of the next batch: what 99% of the batches were waited for at most, in the first "
        "half; of fewer than 100, nearly the longest.",
        "× is told of all; only rows that say antialiased: yes make the same pixels.",
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
