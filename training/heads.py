"""Heads trained on kept features, with no run's folder around: what a search does many times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bintally.counting.model import CountNet, build_model
from bintally.dataset.labels import Classes
from bintally.dataset.manifest import read_dataset
from bintally.dataset.samples import Samples
from bintally.dataset.shard_cache import shard_cache
from bintally.device import precision_type
from bintally.loading.engines import make_engine
from bintally.loading.order import TrainingOrder
from bintally.storage.opening import open_place
from training.config import FitConfig
from training.features import BATCH_SIZE, Features, compute_features, features_folder
from training.inputs import FeatureInputs
from training.launch.distributed import Process
from training.loop import Callback, Loop

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["HeadData", "HeadTraining", "read_head_data"]


@dataclass(frozen=True)
class HeadData:
    """All that heads of one frozen backbone are trained on. Picklable, arrays and plain values."""

    train: Features
    """Both views."""
    sizes: NDArray[np.int64]
    """(shards,) samples of each shard of the train split."""
    validation: Features
    """The first view."""
    classes: Classes
    class_counts: Mapping[str, int]
    """Of the train split, by count."""


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
    cache = shard_cache(config.cache, config.cache_gib)
    train, validation = (
        Samples(place, dataset, split, cache, config.where) for split in ("train", "validation")
    )
    folder = features_folder(
        train.identity, model.backbone, preprocessing, precision, engine, process.device
    )
    features = [
        compute_features(
            folder,
            model.backbone,
            samples,
            dataset.classes,
            engine,
            process,
            precision,
            on_bad_sample=config.on_bad_sample,
        )
        for samples in (train, validation)
    ]
    return HeadData(features[0], train.sizes, features[1], dataset.classes, train.class_counts)


class HeadTraining:
    """A head in training, epoch by epoch: as `fit` trains it, with the same order, flips, recipe
    and result."""

    def __init__(self, config: FitConfig, data: HeadData, process: Process) -> None:
        config.check()
        self.model = CountNet(
            nn.Identity(),
            data.train.values.shape[2],
            config.head_width,
            len(data.classes),
            "head",
            config.dropout,
            config.seed,
        ).to(process.device)
        """With no backbone: features in, logits out."""
        precision = precision_type(config.precision, process.device)
        order = TrainingOrder(
            data.sizes,
            config.batch_size,
            config.seed,
            config.lanes,
            config.window,
            data.train.labels if config.balance == "order" else None,
            process.rank,
            process.world_size,
            parts=config.accumulate,
        )
        self._loop = Loop(
            config,
            self.model,
            FeatureInputs(config, data.train, data.validation, order, process, precision),
            data.classes,
            data.class_counts,
            process,
            precision,
        )

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to train."""
        return self._loop.ended

    @property
    def best(self) -> dict[str, Any]:
        """`epoch` and `validation` metrics of the best epoch so far."""
        return self._loop.position.best

    def train_epoch(self) -> dict[str, Any]:
        """Trains and validates the next epoch; its line, as `metrics.jsonl` has it."""
        line = self._loop.train_epoch(Callback())
        self._loop.end_epoch(line)
        return line
