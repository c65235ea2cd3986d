"""What a checkpoint is worth on a split: every sample once, on all processes there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bintally.command import UsageError
from bintally.places import open_place
from sharding.dataset import read_dataset
from training.checkpoint import read_checkpoint
from training.config import DeviceName, EngineName, OnBadSample, PrecisionName, precision_type
from training.distributed import joined
from training.engine import make_engine
from training.evaluate import evaluate
from training.metrics import most_frequent_count
from training.results import write_results
from training.samples import Samples
from training.shard_cache import ShardCache

__all__ = ["measure"]


def measure(
    file: Path,
    shards: str,
    split: str,
    folder: Path,
    *,
    batch_size: int = 128,
    precision: PrecisionName = "auto",
    engine_name: EngineName = "auto",
    device: DeviceName = "auto",
    on_bad_sample: OnBadSample = "stop",
    cache: ShardCache | None = None,
) -> tuple[dict[str, Any] | None, bool]:
    """Evaluates a checkpoint and writes `evaluation.json` and `report.html` into a folder.

    Returns the former's value, None on all processes but the first, and whether this is the
    dataset that the checkpoint was trained on. Raises `UsageError` for a checkpoint or a split that
    do not fit the dataset.
    """
    checkpoint, sha256 = read_checkpoint(file)
    place = open_place(shards)
    dataset = read_dataset(place)
    if list(dataset.classes) != checkpoint.classes:
        raise UsageError(
            f"{file} tells the counts {checkpoint.classes} apart, and {shards} has "
            f"{list(dataset.classes)}: not made for each other"
        )
    samples = Samples(place, dataset, split, cache)
    if not len(samples):
        raise UsageError(f"--split {split}: has no samples in {shards}")
    model, preprocessing = checkpoint.build()
    summary = None
    with joined(device) as process:
        computed_in = precision_type(precision, process.device)
        evaluation = evaluate(
            model.to(process.device),
            samples,
            checkpoint.classes,
            make_engine(
                engine_name,
                preprocessing,
                process.device,
                batch_size,
                half=computed_in != torch.float32,
            ),
            process,
            batch_size=batch_size,
            precision=computed_in,
            left_out=set() if on_bad_sample == "skip" else None,
        )
        if process.is_first:
            baseline = most_frequent_count(dataset.splits["train"].class_counts)
            summary = write_results(folder, evaluation, samples, checkpoint, sha256, baseline)
    return summary, checkpoint.dataset == dataset.sha256
