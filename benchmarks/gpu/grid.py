"""Photos a second of the loader in many settings, in one process; the most telling ones first."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import nvidia.dali.fn as fn
import torch

import bintally.loading.dali_engine as dali_engine
from benchmarks.gpu.context import PREPROCESSING, Context, failure
from benchmarks.loader.dali import dali_reader_pipeline
from bintally.dataset.manifest import read_dataset
from bintally.dataset.samples import Samples
from bintally.loading.augmentation import Augmentation
from bintally.loading.cpu_engine import CpuEngine
from bintally.loading.dali_engine import DaliEngine
from bintally.loading.engine import Engine
from bintally.loading.loader import EpochLoader
from bintally.loading.order import TrainingOrder
from bintally.storage.opening import open_place

__all__ = ["main"]

SETTINGS: list[dict[str, Any]] = [
    {},
    {"engine": "reader"},
    {"jpeg_unit": 0.65},
    {"engine": "cpu"},
    {"fancy": False},
    {"threads": 2},
    {"threads": 4},
    {"no_copy": True},
    {"prefetch": 4},
    {"batch": 64, "half": False},
    {"photos": "big224"},
    {"photos": "big224", "engine": "reader"},
    {"photos": "big224", "engine": "cpu"},
    {"jpeg_unit": 0.0},
    {"threads": 1},
    {"threads": 8},
    {"hint": True},
    {"prefetch": 3},
    {"batch": 512},
    {"jpeg_unit": 0.85},
    {"engine": "cpu", "threads": 4},
]
MORE_S = 8.0
"""What a setting takes at most."""


def main(context: Context) -> None:
    """Keeps `grid.json` after every setting, until the time is over."""
    base: dict[str, Any] = {
        "engine": "dali",
        "jpeg_unit": dali_engine.HARDWARE_SHARE,
        "threads": context.cores,
        "batch": 8 if context.smallest else 256,
        "half": context.on_gpu,
        "photos": "big",
        "fancy": True,
    }
    plain = fn.decoders.image, fn.external_source, dali_engine.PREFETCH
    results: list[dict[str, Any]] = []
    for changed in SETTINGS:
        setting = base | changed
        if context.smallest:
            setting["batch"] = min(setting["batch"], 16)
        if context.left < MORE_S:
            break
        try:
            report: dict[str, Any] = measured(context, setting)
        except Exception as error:
            report = failure(error)
        fn.decoders.image, fn.external_source, dali_engine.PREFETCH = plain
        results.append({"changed": changed, **report})
        context.keep("grid", {"base": base, "results": results})
        context.say(results[-1])


def batches(context: Context, setting: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """Batches without end, as training has them."""
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    place = open_place(context.work / setting["photos"])
    dataset = read_dataset(place)
    threads, half, size = setting["threads"], setting["half"], setting["batch"]
    if setting["engine"] == "reader":
        tars = [context.work / setting["photos"] / s.path for s in dataset.splits["train"].shards]
        pipeline = dali_reader_pipeline(
            [str(tar) for tar in tars],
            [str(tar.with_suffix(".idx")) for tar in tars],
            on_gpu=context.on_gpu,
            batch_size=size,
            threads=threads,
            half=half,
            resize=setting["photos"] == "big",
        )
        columns = ["images", "digits"]
        for (batch,) in DALIGenericIterator(pipeline, columns, size=-1, auto_reset=True):
            yield batch["images"]
        return
    engine: Engine
    if setting["engine"] == "cpu":
        engine = CpuEngine(PREPROCESSING, context.device, threads, half=half)
    else:
        change_dali(setting)
        share = setting["jpeg_unit"]
        engine = DaliEngine(PREPROCESSING, context.device, size, threads, share, half=half)
    samples = Samples(place, dataset, "train")
    order = TrainingOrder(samples.sizes, size, seed=0)
    loader = EpochLoader(samples, range(6), engine, order, augment=Augmentation.named("flip"))
    while True:
        yield from (batch.images for batch in loader)


def change_dali(setting: Mapping[str, Any]) -> None:
    """Gives the engine's operators settings that it has no parameters for."""
    image, source = fn.decoders.image, fn.external_source
    more: dict[str, Any] = {"jpeg_fancy_upsampling": setting["fancy"]}
    if setting.get("hint"):
        more |= {"preallocate_width_hint": 800, "preallocate_height_hint": 1100}
    fn.decoders.image = lambda *a, **k: image(*a, **(k | more))
    if setting.get("no_copy"):
        fn.external_source = lambda *a, **k: source(*a, **(k | {"no_copy": True}))
    dali_engine.PREFETCH = setting.get("prefetch", dali_engine.PREFETCH)


def measured(context: Context, setting: Mapping[str, Any]) -> dict[str, float]:
    """A setting's speed, once it is under way."""
    seconds = 0.2 if context.smallest else 2.5
    began = time.perf_counter()
    source = batches(context, setting)
    next(source)
    context.wait()
    first = time.perf_counter() - began
    for _ in range(1 if context.smallest else 7):
        next(source)
    context.wait()
    cpu, began, number = time.process_time(), time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(4):
            number += len(next(source))
    context.wait()
    taken, cpu = time.perf_counter() - began, time.process_time() - cpu
    del source
    return {
        "photos_per_s": round(number / taken),
        "cpu_s_per_1000": round(1000 * cpu / number, 3),
        "cores_busy": round(cpu / taken, 1),
        "first_batch_s": round(first, 2),
    }


if __name__ == "__main__":
    main(Context.read())
