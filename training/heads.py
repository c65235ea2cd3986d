"""Heads of a frozen backbone, trained with no run's folder around: a search does it many times."""

from __future__ import annotations

import io
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
from bintally.loading.engine import Engine
from bintally.loading.engines import make_engine
from bintally.loading.order import TrainingOrder
from bintally.loading.preprocessing import Preprocessing
from bintally.storage.opening import open_place
from training.config import FitConfig
from training.features import BATCH_SIZE, Features, compute_features, features_folder
from training.inputs import FeatureInputs, Inputs, PhotoInputs, make_order
from training.launch.distributed import Process
from training.loop import Callback, Loop, Position

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["HeadData", "HeadTraining", "feature_settings", "read_head_data"]


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


def feature_settings(config: FitConfig) -> tuple[Any, ...] | None:
    """The settings that decide what the frozen backbone makes of a photo: trainings that agree in
    them share their features. None where photos are seen anew in every epoch."""
    if not config.flips_only:
        return None
    # Weights that are not read are drawn.
    seed = config.seed if config.weights == "none" else None
    settings = config.backbone, config.weights, config.image_size, config.precision
    return *settings, config.on_bad_sample, seed


def read_head_data(config: FitConfig, process: Process) -> HeadData:
    """The features that `fit` would train the head on, kept from earlier or computed now.

    Of `config` only the dataset, the engine and the `feature_settings` matter.
    """
    opened = _open(config, process)
    train, backbone = opened.train, opened.model.backbone
    engine = opened.engine(config, BATCH_SIZE)
    folder = features_folder(
        train.identity,
        backbone,
        opened.preprocessing,
        opened.precision,
        engine,
        process.device,
    )
    features = [
        compute_features(
            folder,
            backbone,
            samples,
            opened.classes,
            engine,
            process,
            opened.precision,
            on_bad_sample=config.on_bad_sample,
        )
        for samples in (train, opened.validation)
    ]
    return HeadData(features[0], train.sizes, features[1], opened.classes, train.class_counts)


@dataclass(frozen=True)
class _Opened:
    """A dataset, and a model for it, on a process's device."""

    train: Samples
    validation: Samples
    classes: Classes
    model: CountNet
    preprocessing: Preprocessing
    precision: torch.dtype
    device: torch.device

    def engine(self, config: FitConfig, batch_size: int) -> Engine:
        """What decodes so many photos at a time."""
        half = self.precision != torch.float32
        return make_engine(config.engine, self.preprocessing, self.device, batch_size, half=half)


def _open(config: FitConfig, process: Process) -> _Opened:
    place = open_place(config.shards)
    dataset = read_dataset(place)
    model, preprocessing = build_model(
        config.backbone,
        config.weights,
        image_size=config.image_size,
        head_width=config.head_width,
        num_classes=len(dataset.classes),
        trainable="head",
        dropout=config.dropout,
        seed=config.seed,
    )
    cache = shard_cache(config.cache, config.cache_gib)
    train, validation = (
        Samples(place, dataset, split, cache, config.where) for split in ("train", "validation")
    )
    precision = precision_type(config.precision, process.device)
    model.to(process.device)
    return _Opened(
        train, validation, dataset.classes, model, preprocessing, precision, process.device
    )


class HeadTraining:
    """A head in training, epoch by epoch: as `fit` trains it, with the same order, flips, recipe
    and result."""

    def __init__(self, config: FitConfig, data: HeadData | None, process: Process) -> None:
        """`data` is None where photos are seen anew in every epoch."""
        config.check()
        self._process = process
        made = _on_photos(config, process) if data is None else _on_features(config, data, process)
        self.model = made[0]
        """With features no backbone: features in, logits out."""
        self._loop = Loop(config, *made, process, precision_type(config.precision, process.device))

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to train."""
        return self._loop.ended

    @property
    def epoch(self) -> int:
        """How many are done."""
        return self._loop.position.epoch

    @property
    def best(self) -> dict[str, Any]:
        """`epoch` and `validation` metrics of the best epoch so far."""
        return self._loop.position.best

    def train_epoch(self) -> dict[str, Any]:
        """Trains and validates the next epoch; its line, as `metrics.jsonl` has it."""
        line = self._loop.train_epoch(Callback())
        self._loop.end_epoch(line)
        return line

    def state(self) -> bytes:
        """What another `HeadTraining` of the same settings goes on from after the epoch that is
        done, on any device."""
        loop, buffer = self._loop, io.BytesIO()
        state = {
            "head": loop.model.head.state_dict(),
            "optimizer": loop.optimizer.state_dict(),
            "average": loop.average.values if loop.average else {},
            "position": vars(loop.position),
            "stopped": loop.stopped,
        }
        torch.save(state, buffer)
        return buffer.getvalue()

    def load(self, state: bytes) -> None:
        """Goes on from there."""
        loop = self._loop
        read = torch.load(io.BytesIO(state), map_location=self._process.device, weights_only=True)
        loop.model.head.load_state_dict(read["head"])
        loop.optimizer.load_state_dict(read["optimizer"])
        if loop.average:
            loop.average.load(read["average"])
        loop.position, loop.stopped = Position(**read["position"]), read["stopped"]


_Made = tuple[CountNet, Inputs, Classes, Mapping[str, int]]
"""What a loop takes: the model, its input, the classes, and the counts of the train split."""


def _on_features(config: FitConfig, data: HeadData, process: Process) -> _Made:
    model = CountNet(
        nn.Identity(),
        data.train.values.shape[2],
        config.head_width,
        len(data.classes),
        "head",
        config.dropout,
        config.seed,
    ).to(process.device)
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
    precision = precision_type(config.precision, process.device)
    inputs = FeatureInputs(config, data.train, data.validation, order, process, precision)
    return model, inputs, data.classes, data.class_counts


def _on_photos(config: FitConfig, process: Process) -> _Made:
    opened = _open(config, process)
    order = make_order(config, None, opened.train, opened.classes, process)
    inputs = PhotoInputs(
        config,
        opened.train,
        opened.validation,
        opened.classes,
        opened.engine(config, max(order.largest_part, config.eval_batch_size)),
        order,
        process,
        opened.precision,
    )
    return opened.model, inputs, opened.classes, opened.train.class_counts
