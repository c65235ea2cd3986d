"""DALI's own reader of WebDataset shards: as its examples have it, and tuned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.loader.epoch import measure
from benchmarks.loader.workload import (
    BATCH_SIZE,
    PREPROCESSING,
    SHUFFLE_BUFFER,
    Batches,
    Workload,
)
from benchmarks.measure import Measurement

__all__ = ["dali_reader", "dali_reader_pipeline"]


def dali_reader_pipeline(
    tars: Sequence[str],
    indexes: Sequence[str],
    *,
    on_gpu: bool,
    batch_size: int,
    threads: int,
    half: bool = False,
    resize: bool = True,
    tuned: bool = False,
) -> Any:
    """DALI's own reader of WebDataset shards, as its examples have it; mixed decode on a GPU.

    Photos that have their size already need no `resize`. The GPU's JPEG unit takes all of them, as
    in our engine: that is the fastest here. `tuned`, it has the newer executor and works further
    ahead; channels last, three threads and a fused resize and flip were no faster.
    """
    from nvidia.dali import fn, pipeline_def, types

    from bintally.loading.dali_engine import HARDWARE_SHARE

    size = PREPROCESSING.image_size

    @pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=batch_size,
        num_threads=threads,
        device_id=0 if on_gpu else None,
        exec_dynamic=tuned,
        prefetch_queue_depth=4 if tuned else 2,
    )
    def pipeline() -> Any:
        components: Any = fn.readers.webdataset(
            paths=list(tars),
            index_paths=list(indexes),
            ext=["jpg", "cls"],
            missing_component_behavior="error",
            random_shuffle=True,
            initial_fill=SHUFFLE_BUFFER,
            pad_last_batch=True,
            name="reader",
        )
        jpegs, digits = components
        images = fn.decoders.image(
            jpegs,
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
            hw_decoder_load=HARDWARE_SHARE,
        )
        if resize:
            images = fn.resize(images, size=[size, size], interp_type=types.INTERP_LINEAR)
        images = fn.crop_mirror_normalize(
            images,
            mirror=fn.random.coin_flip(probability=0.5),
            mean=[255 * m for m in PREPROCESSING.mean],
            std=[255 * s for s in PREPROCESSING.std],
            output_layout="CHW",
            dtype=types.FLOAT16 if half else types.FLOAT,
        )
        # A count has as many bytes as digits; padded with zeros, they make one tensor.
        return images, fn.pad(digits)

    return pipeline()


def dali_reader(workload: Workload, resize: bool = True, tuned: bool = False) -> Measurement:
    """An epoch of `dali_reader_pipeline`."""
    import torch
    from nvidia.dali.plugin.base_iterator import LastBatchPolicy
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    # A table of a count's class; a count that is no class would be a class too many.
    table = torch.full((max(workload.classes) + 1,), len(workload.classes))
    table[list(workload.classes)] = torch.arange(len(workload.classes))

    def begin() -> Batches:
        iterator = DALIGenericIterator(
            dali_reader_pipeline(
                workload.tars,
                workload.indexes,
                on_gpu=workload.device == "cuda",
                batch_size=BATCH_SIZE,
                threads=workload.num_workers,
                resize=resize,
                tuned=tuned,
            ),
            ["images", "digits"],
            reader_name="reader",
            last_batch_policy=LastBatchPolicy.PARTIAL,
        )
        for (batch,) in iterator:
            counts = torch.zeros(len(batch["digits"]), dtype=torch.int64)
            for digit in batch["digits"].unbind(1):
                counts = torch.where(digit > 0, 10 * counts + digit - ord("0"), counts)
            yield batch["images"], table[counts].to(workload.device, non_blocking=True)

    return measure(workload, begin)
