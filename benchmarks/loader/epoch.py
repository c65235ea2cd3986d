"""An epoch of a loader, measured.

What comes first, a batch for each worker, starts the loader up. Then half of the epoch is taken as
fast as it comes: photos a second, and how long the next batch is waited for.

The other half feeds emulated accelerators, as MLPerf Storage does for ResNet-50. An H100 there
takes 0.224 s for a batch of 400; here it takes as much for each photo, a step being a batch of the
loader's, and the consumer sleeps meanwhile, for a GPU's work leaves the CPU alone. A step's sleep
and the wait for the next batch make an accelerator's utilisation,

    AU = asleep / (asleep + waiting),

over all steps of that half but the first, whose batch came at full pace. So that any rate can be
told, a fraction of an accelerator or several are fed: k of them, which take a batch in 1/k of the
time, where k is what the loader's rate at full pace would keep busy for 90% of the time, rate /
(0.9 × 400 / 0.224 s). Were the loader as fast beside them, AU would be 0.9. What is told is k × AU
/ 0.9: as many as are busy for 90% of the time at the rate that it held beside them. It falls behind
k where a loader does not work ahead while nobody asks, or where batches come unevenly.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING

from benchmarks.loader.workload import BATCH_SIZE, PREPROCESSING, Batches, Workload
from benchmarks.measure import Measurement, cpu_seconds, peak_memory_mib, workers_memory_mib
from bintally.errors import WorkError

if TYPE_CHECKING:
    import torch

__all__ = ["ACCELERATOR_PER_S", "BUSY", "LEAST_BATCHES", "measure", "to_device"]

LEAST_BATCHES = 3
"""One to start, one at full pace, one for the accelerators."""
ACCELERATOR_PER_S = 400 / 0.224
"""Photos that an emulated H100 takes."""
BUSY = 0.9


def measure(workload: Workload, begin: Callable[[], Batches]) -> Measurement:
    """Runs an epoch. The clock starts before the loader is made, and its imports are done then.

    Raises `WorkError` where it did not deliver what it should have.
    """
    import numpy as np
    import torch

    def now() -> float:
        # What is queued on the GPU is not yet delivered.
        if workload.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    if workload.device == "cuda":
        torch.cuda.init()
    # A worker's first batch takes what making the loader takes; all workers' come at about once.
    num_batches = -(-workload.num_photos // BATCH_SIZE)
    last_left_out = max(1, min(workload.num_workers, num_batches // LEAST_BATCHES))
    last_at_full_pace = last_left_out + max(1, (num_batches - last_left_out) // 2)
    labels: list[torch.Tensor] = []
    waits: list[float] = []
    num_delivered = num_before = 0
    first_at = counted_from = cpu_at_last = workers_mib = 0.0
    rate = asleep = waiting = nap = 0.0
    has_workers = False
    cpu_before, began = cpu_seconds(), time.perf_counter()
    batches = begin()
    for number in count(1):
        asked_at = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        images, classes = batch
        _check(workload, images, classes)
        at = now()
        labels.append(classes)
        num_delivered += len(images)
        if number == 1:
            first_at, has_workers = at, bool(multiprocessing.active_children())
        if last_left_out < number <= last_at_full_pace:
            waits.append(at - asked_at)
        if number > last_at_full_pace:
            asleep, waiting = asleep + nap, waiting + at - asked_at
        if number == last_left_out:
            num_before, counted_from = num_delivered, at
        if number == last_at_full_pace:
            rate = (num_delivered - num_before) / (at - counted_from)
        if num_delivered == workload.num_photos:
            cpu_at_last = cpu_seconds()
        if number == num_batches - last_left_out:
            # A worker that has nothing left to do may be gone at the end.
            workers_mib = workers_memory_mib()
        # The first step, whose batch was the last one at full pace, is only begun.
        if last_at_full_pace <= number < num_batches:
            fallen_asleep_at = time.perf_counter()
            time.sleep(len(images) * BUSY / rate)
            nap = time.perf_counter() - fallen_asleep_at
    # The time of workers is known once they have ended. In one process, what a loader has begun of
    # the next epoch, as DALI's reader does, is not this one's.
    cpu_s = (cpu_seconds() if has_workers else cpu_at_last) - cpu_before
    if num_delivered != workload.num_photos:
        raise WorkError(f"delivered {num_delivered:,} photos, not {workload.num_photos:,}")
    counted = torch.cat(labels).cpu().bincount(minlength=len(workload.classes)).tolist()
    if tuple(counted) != workload.class_counts:
        raise WorkError(f"delivered {counted} photos of the classes, not {workload.class_counts}")
    fed = rate / (BUSY * ACCELERATOR_PER_S)
    return {
        "photos_per_s": rate,
        "photos_per_s_per_core": rate / workload.num_workers,
        "h100s_at_90": fed * asleep / (asleep + waiting) / BUSY,
        "p99_ms": float(np.percentile(waits, 99)) * 1000,
        "first_batch_s": first_at - began,
        "cpu_s_per_1000": cpu_s * 1000 / num_delivered,
        "peak_memory_mib": peak_memory_mib() + workers_mib,
    }


def _check(workload: Workload, images: torch.Tensor, classes: torch.Tensor) -> None:
    """Raises `WorkError` where a batch is not what all have to deliver."""
    import torch

    size = PREPROCESSING.image_size
    if images.shape[1:] != (3, size, size) or images.dtype != torch.float32:
        raise WorkError(f"delivered {images.dtype} of shape {tuple(images.shape)}")
    if images.device.type != workload.device or len(images) != len(classes):
        raise WorkError(f"delivered {len(classes)} classes and {len(images)} photos elsewhere")


def to_device(batches: Batches, workload: Workload) -> Batches:
    """The batches on the device that the model would be on."""
    for images, classes in batches:
        yield (
            images.to(workload.device, non_blocking=True),
            classes.to(workload.device, non_blocking=True),
        )
