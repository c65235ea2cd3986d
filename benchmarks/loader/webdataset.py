"""webdataset, shuffled as its documentation does it, with the fastest decoder that users have."""

from __future__ import annotations

from functools import partial

from benchmarks.loader.epoch import measure
from benchmarks.loader.pixels import normalised, pixels
from benchmarks.loader.workload import BATCH_SIZE, SHUFFLE_BUFFER, Batches, Workload
from benchmarks.measure import Measurement

__all__ = ["wds"]


def wds(workload: Workload, least: int = 2) -> Measurement:
    """An epoch from the tars; `least` is that of `pixels`."""
    import simplejpeg  # noqa: F401
    import torch
    import webdataset

    decode, class_of = partial(pixels, least=least), partial(_class_of, workload.classes)
    # The workers have the cores.
    torch.set_num_threads(1)

    def begin() -> Batches:
        dataset = (
            webdataset.WebDataset(list(workload.tars), shardshuffle=len(workload.tars))
            .shuffle(SHUFFLE_BUFFER)
            .to_tuple("jpg", "cls")
            .map_tuple(decode, class_of)
            .batched(BATCH_SIZE)
        )
        loader = webdataset.WebLoader(
            dataset,
            batch_size=None,
            num_workers=workload.num_wds_workers,
            pin_memory=workload.device == "cuda",
        )
        return normalised(iter(loader), workload)

    return measure(workload, begin)


def _class_of(classes: tuple[int, ...], count: bytes) -> int:
    return classes.index(int(count))
