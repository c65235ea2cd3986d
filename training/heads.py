"""Heads trained on kept features, with no run's folder around: what a search does many times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bintally.places import open_place
from sharding.dataset import read_dataset
from training.config import FitConfig, precision_type
from training.distributed import Process
from training.engine import make_engine
from training.features import BATCH_SIZE, Features, compute_features, features_folder
from training.inputs import FeatureInputs
from training.loop import Loop, Watcher
from training.model import CountNet, build_model
from training.order import TrainingOrder
from training.samples import Samples
from training.shards import shard_cache

__all__ = ["HeadData", "TrainedHead", "read_head_data", "train_head"]


@dataclass(frozen=True)
class HeadData:
    """All that heads of one frozen backbone are trained on. Picklable, arrays and plain values."""

    train: Features
    """Both views."""
    validation: Features
    """The first view."""
    classes: Sequence[int]
    class_counts: Mapping[str, int]
    """Of the train split, by count."""


@dataclass(frozen=True)
class TrainedHead:
    """What became of a head."""

    history: list[dict[str, Any]]
    """A line for each epoch, as `metrics.jsonl` has them."""
    best: dict[str, Any]
    """`epoch` and `validation` metrics of the best epoch."""
    model: CountNet
    """After the last epoch, with no backbone: features in, logits out."""


def read_head_data(config: FitConfig, process: Process) -> HeadData:
    """The features that `fit` would train the head on, kept from earlier or computed now.

    Of `config` only what decides the features matters: the dataset, the backbone and its weights,
    image size, precision, engine, and the seed where there are no weights.
    """
    place = open_place(config.shards)
    dataset = read_dataset(place)
    model, preprocessing = build_model(
        config.backbone,
        config.weights,
        image_size=config.image_size,
        head_width=config.head_width,
        num_classes=len(dataset.classes),
        trainable="head",
        seed=config.seed,
    )
    model.to(process.device)
    precision = precision_type(config.precision, process.device)
    engine = make_engine(
        config.engine,
        preprocessing,
        process.device,
        BATCH_SIZE,
        half=precision != torch.float32,
    )
    folder = features_folder(
        dataset.sha256, model.backbone, preprocessing, precision, engine, process.device
    )
    cache = shard_cache(config.cache, config.cache_gib)
    train, validation = (
        compute_features(
            folder,
            model.backbone,
            Samples(place, dataset, split, cache),
            dataset.classes,
            engine,
            process,
            precision,
            views=views,
        )
        for split, views in (("train", 2), ("validation", 1))
    )
    return HeadData(train, validation, dataset.classes, dataset.splits["train"].class_counts)


def train_head(
    config: FitConfig,
    data: HeadData,
    process: Process,
    on_epoch: Callable[[dict[str, Any]], bool] = lambda line: False,
) -> TrainedHead:
    """Trains a head as `fit` with `config` does: the same order, flips, recipe and result.

    `on_epoch` is given each epoch's line of the history; True ends the training.
    """
    config.check()
    model = CountNet(
        nn.Identity(),
        data.train.values.shape[2],
        config.head_width,
        len(data.classes),
        "head",
        config.dropout,
        config.seed,
    ).to(process.device)
    precision = precision_type(config.precision, process.device)
    order = TrainingOrder(
        len(data.train.labels),
        config.batch_size,
        config.seed,
        data.train.labels if config.balance == "order" else None,
        None,
        process.rank,
        process.world_size,
        config.accumulate,
    )
    loop = Loop(
        config,
        model,
        FeatureInputs(config, data.train, data.validation, order, process, precision),
        data.classes,
        data.class_counts,
        process,
        precision,
    )
    while not loop.ended:
        line = loop.train_epoch(Watcher())
        loop.end_epoch(line)
        if on_epoch(line):
            break
    return TrainedHead(loop.position.history, loop.position.best, model)
