"""What no loader on the CPU's cores can pass: the same work per photo, and nothing around it.

A process for each core decodes, resizes and normalises photos that it takes from the page cache;
no order, no batch that travels between processes, no output that is newly allocated. The calls are
the CPU engine's own.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.loader.workload import BATCH_SIZE, PREPROCESSING, Workload
from benchmarks.measure import Measurement, cpu_seconds, peak_memory_mib
from bintally.errors import WorkError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["limit"]

TAKEN_AT_ONCE = 8
"""Photos that a process takes: few, so that all end at the same time."""


def limit(workload: Workload) -> Measurement:
    """Photos a second of all cores together."""
    context = multiprocessing.get_context("spawn")
    taken = context.Value("q", 0)
    start = context.Barrier(workload.num_workers + 1)
    receivers, processes = [], []
    for _ in range(workload.num_workers):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=_work, args=(workload.shards, taken, start, sender), daemon=True
        )
        process.start()
        sender.close()
        receivers.append(receiver)
        processes.append(process)
    start.wait(timeout=300)
    began = time.perf_counter()
    try:
        # One after the other will do: the clock stops at the last.
        answers = [receiver.recv() for receiver in receivers]
    except EOFError:
        raise WorkError("a process of the limit died") from None
    wall_s = time.perf_counter() - began
    for process in processes:
        process.join()
    num_photos = sum(number for number, _, _ in answers)
    if num_photos != workload.num_photos:
        raise WorkError(f"processed {num_photos:,} photos, not {workload.num_photos:,}")
    return {
        "photos_per_s": num_photos / wall_s,
        "photos_per_s_per_core": num_photos / wall_s / workload.num_workers,
        "cpu_s_per_1000": sum(cpu_s for _, cpu_s, _ in answers) * 1000 / num_photos,
        "peak_memory_mib": sum(memory_mib for _, _, memory_mib in answers),
    }


def _work(shards: Path, taken: Any, start: Any, sender: Connection) -> None:
    """Sends how many photos this process has done, and in how many CPU seconds, and
    how many MiB it took."""
    import numpy as np
    import torch

    from bintally.dataset.manifest import read_dataset
    from bintally.dataset.samples import Samples
    from bintally.loading.augmentation import Draws
    from bintally.loading.cpu_engine import CpuEngine
    from bintally.storage.opening import open_place

    place = open_place(shards)
    samples = Samples(place, read_dataset(place), "train")
    engine = CpuEngine(PREPROCESSING, torch.device("cpu"), threads=1)
    size = PREPROCESSING.image_size
    batch = np.empty((BATCH_SIZE, size, size * 3), np.float32)
    as_it_is = Draws.nothing(1)

    def process(index: int) -> None:
        at = index % BATCH_SIZE
        engine.make([samples.photo(index)], as_it_is, batch[at : at + 1])

    for index in range(min(TAKEN_AT_ONCE, len(samples))):
        process(index)
    start.wait(timeout=300)
    cpu_before, number = cpu_seconds(), 0
    while True:
        with taken.get_lock():
            first = taken.value
            taken.value = last = min(first + TAKEN_AT_ONCE, len(samples))
        if first == last:
            break
        for index in range(first, last):
            process(index)
        number += last - first
    sender.send((number, cpu_seconds() - cpu_before, peak_memory_mib()))
    sender.close()
