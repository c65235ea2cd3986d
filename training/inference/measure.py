"""What a checkpoint is worth on a split: every sample once, on all processes there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bintally.counting.checkpoint import read_checkpoint
from bintally.dataset.labels import Classes
from bintally.dataset.manifest import read_dataset
from bintally.dataset.samples import Samples
from bintally.dataset.shard_cache import ShardCache
from bintally.device import precision_type
from bintally.errors import UsageError
from bintally.loading.engines import make_engine
from bintally.options import DeviceName, EngineName, OnBadSample, PrecisionName
from bintally.storage.opening import open_place
from training.evaluate import evaluate
from training.launch.distributed import joined
from training.metrics import most_frequent_count
from training.report.results import LAST, METRICS, write_results
from training.survival.run_folder import check_results

__all__ = ["measure"]


def measure(
    file: Path,
    shards: str,
    split: str,
    folder: Path | None,
    *,
    batch_size: int = 128,
    precision: PrecisionName = "auto",
    engine_name: EngineName = "auto",
    device: DeviceName = "auto",
    on_bad_sample: OnBadSample = "stop",
    cache: ShardCache | None = None,
) -> tuple[dict[str, Any] | None, Path]:
    """Evaluates a checkpoint and writes `evaluation.json` and `report.html` into a folder.

    Without a `folder` it is one beside the checkpoint that is called after the split, and for
    another dataset than the one it was trained on after that too. Returns the former file's value,
    None on all processes but the first, and the folder. Raises `UsageError` for a checkpoint or a
    split that do not fit the dataset, for a folder that holds a run, and for files in it that are
    not ours.
    """
    checkpoint, sha256 = read_checkpoint(file)
    place = open_place(shards)
    dataset = read_dataset(place)
    if list(dataset.classes) != checkpoint.classes:
        raise UsageError(
            f"{file} tells the classes {_listed(checkpoint.classes)} apart, and {shards} has "
            f"{_listed(dataset.classes)}: not made for each other"
        )
    if folder is None:
        folder = file.parent / f"evaluation-{split}"
        if dataset.sha256 != checkpoint.dataset:
            folder = folder.with_name(f"{folder.name}-{dataset.sha256[:12]}")
    elif any((folder / name).exists() for name in (LAST, METRICS)):
        raise UsageError(f"--output {folder}: holds a run, whose own results stay; name another")
    check_results(open_place(folder))
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
            trained, split_counts = (dataset.splits[n].class_counts for n in ("train", split))
            # A dataset to measure on alone has no train split.
            baseline = most_frequent_count(trained if any(trained.values()) else split_counts)
            summary = write_results(
                folder, file.parent, evaluation, samples, checkpoint, sha256, baseline
            )
    return summary, folder


def _listed(classes: Classes) -> str:
    """Classes in a line, where a thousand names have no place."""
    if len(classes) <= MOST_LISTED:
        return str([*classes])
    return f"{classes[0]!r}, {classes[1]!r}, … {classes[-1]!r} ({len(classes):,} in all)"


MOST_LISTED = 20
