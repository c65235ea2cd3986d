"""The plain way to search with Ray Tune: every trial reads, decodes and computes all of it again.

Written as Ray's and torchvision's tutorials have it: a function with an ImageFolder and a
DataLoader in each trial, a frozen backbone in evaluation mode, and a head.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import Measurement

__all__ = ["plain"]


def plain(
    backbone: str, weights: str, train: Path, validation: Path, num_trials: int, epochs: Path
) -> Measurement:
    """Runs trials of one epoch, as many at a time as there are cores; what all epochs would take.

    `epochs` is a file with the number of epochs of each trial that the other contestant ran.
    """
    import ray
    from ray import tune

    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(include_dashboard=False, log_to_driver=False)
    settings: dict[str, Any] = {
        "backbone": backbone,
        "weights": weights,
        "train": str(train),
        "validation": str(validation),
        "lr": tune.loguniform(0.001, 0.1),
        "batch_size": tune.choice([32, 64, 128]),
    }
    try:
        grid = tune.Tuner(
            tune.with_resources(_trial, {"cpu": 1}),
            param_space=settings,
            tune_config=tune.TuneConfig(num_samples=num_trials),
            run_config=tune.RunConfig(storage_path=str(epochs.parent / "ray"), verbose=0),
        ).fit()
        took = [float(result.metrics["epoch_s"]) for result in grid]
    finally:
        ray.shutdown()
    trained = json.loads(epochs.read_text())
    at_a_time = min(os.cpu_count() or 1, num_trials)
    seconds = sum(trained) * sum(took) / len(took) / at_a_time
    return {
        "trials_per_hour": 3600 * len(trained) / seconds,
        "search_s": seconds,
        "epochs": float(sum(trained)),
    }


def _trial(settings: dict[str, Any]) -> None:
    """One epoch of training and its validation."""
    import torch
    from ray import tune
    from torch.nn import functional
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    from bintally.counting.model import build_model

    model, preprocessing = build_model(
        settings["backbone"],
        settings["weights"],
        image_size=224,
        head_width=128,
        num_classes=6,
        trainable="head",
        seed=0,
    )
    normalised = [
        transforms.ToTensor(),
        transforms.Normalize(preprocessing.mean, preprocessing.std),
    ]
    flipped = transforms.Compose(
        [transforms.Resize((224, 224)), transforms.RandomHorizontalFlip(), *normalised]
    )
    plain = transforms.Compose([transforms.Resize((224, 224)), *normalised])
    train = DataLoader(
        datasets.ImageFolder(settings["train"], flipped),
        batch_size=settings["batch_size"],
        shuffle=True,
        drop_last=True,
    )
    validation = DataLoader(
        datasets.ImageFolder(settings["validation"], plain), batch_size=settings["batch_size"]
    )
    optimizer = torch.optim.Adam(model.head.parameters(), lr=settings["lr"])
    began = time.monotonic()
    model.train()
    for images, labels in train:
        # The faster of the two ways of this machine, as in ours.
        with torch.autocast("cpu", torch.bfloat16):
            loss = functional.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    right = 0
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for images, labels in validation:
            right += int((model(images).argmax(1) == labels).sum())
    tune.report({"epoch_s": time.monotonic() - began, "right": right})
