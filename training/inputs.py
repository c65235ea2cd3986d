"""What the model is trained on: photos decoded again every epoch, or kept features of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import nn

from bintally.counting.checkpoint import Checkpoint
from bintally.counting.model import CountNet
from bintally.dataset.labels import Classes
from bintally.dataset.samples import Samples
from bintally.loading.augmentation import Augmentation, mirrored
from bintally.loading.batches import Batch
from bintally.loading.engine import Engine
from bintally.loading.loader import EpochLoader
from bintally.loading.order import TrainingOrder, evaluation_batches
from bintally.loading.preprocessing import Preprocessing
from bintally.terminal.progress import say
from training.config import FitConfig
from training.evaluate import Evaluation, evaluate, evaluate_batches
from training.features import Features, compute_features, features_folder
from training.launch.distributed import Process

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FeatureInputs", "Inputs", "PhotoInputs", "make_inputs", "make_order"]


FEATURES_SHARE = 0.25
"""Of a GPU's free memory, what kept features may take: several trials may share it."""


def make_order(
    config: FitConfig,
    earlier: Checkpoint | None,
    train: Samples,
    classes: Classes,
    process: Process,
) -> TrainingOrder:
    """The order of a run, which keeps the lanes and windows that it was begun with.

    Raises `UsageError` where the cache has no room for what is read at a time.
    """
    begun = config.to_dict() if earlier is None else earlier.config
    order = TrainingOrder(
        train.sizes,
        config.batch_size,
        config.seed,
        begun["lanes"],
        begun["window"],
        train.all_labels(classes) if config.balance == "order" else None,
        process.rank,
        process.world_size,
        process.num_machines,
        config.accumulate,
    )
    # Features are at hand all together, wherever the shards lie.
    if not config.uses_features:
        order.check_room(train)
    return order


class Inputs(Protocol):
    """The input of a run's steps and evaluations."""

    order: TrainingOrder
    """Of what it trains on."""

    @property
    def num_replaced(self) -> int:
        """Samples that did not decode on this process, in whose place others came."""

    def trained(self, model: CountNet) -> nn.Module:
        """The part of the model that takes this input."""

    def batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """This process's parts of an epoch's batches from a step on, `accumulate` for each step."""

    def validate(self, model: CountNet, pause: Callable[[], None]) -> Evaluation | None:
        """The model's answers on the validation split, if there is one; see `evaluate`."""


class PhotoInputs:
    """Photos, decoded ahead of the model."""

    def __init__(
        self,
        config: FitConfig,
        train: Samples,
        validation: Samples,
        classes: Classes,
        engine: Engine,
        order: TrainingOrder,
        process: Process,
        precision: torch.dtype,
    ) -> None:
        self.order = order
        augment = Augmentation.named(config.augment)
        self.loader = EpochLoader(
            train, classes, engine, order, config.on_bad_sample, augment=augment
        )
        self._validation = validation
        self._left_out: set[int] | None = set() if config.on_bad_sample == "skip" else None
        self._classes, self._engine, self._process = classes, engine, process
        self._precision = precision
        self._eval_batch_size = config.eval_batch_size or order.largest_part

    @property
    def num_replaced(self) -> int:
        return len(self.loader.replaced)

    def trained(self, model: CountNet) -> nn.Module:
        return model

    def batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        self.loader.load_state_dict({"epoch": epoch, "step": first_step})
        return iter(self.loader)

    def validate(self, model: CountNet, pause: Callable[[], None]) -> Evaluation | None:
        if not len(self._validation):
            return None
        return evaluate(
            model,
            self._validation,
            self._classes,
            self._engine,
            self._process,
            batch_size=self._eval_batch_size,
            precision=self._precision,
            left_out=self._left_out,
            pause=pause,
        )


class FeatureInputs:
    """Kept features of each photo, where flips are wanted of both views; on the model's device
    where it has the room."""

    def __init__(
        self,
        config: FitConfig,
        train: Features,
        validation: Features | None,
        order: TrainingOrder,
        process: Process,
        precision: torch.dtype,
    ) -> None:
        self.order, self._flip = order, config.augment == "flip"
        self._eval_batch_size = config.eval_batch_size or order.largest_part
        self._process, self._precision = process, precision
        self._train, self._train_labels = _tensors(train, process.device)
        self._keys = train.keys
        self._taken = torch.arange(len(train.labels))
        """Which sample comes in each one's place."""
        for sample, stand_in in train.stand_ins.items():
            self._taken[sample] = stand_in
        self._num_replaced = len(train.stand_ins) if process.is_first else 0
        self._validation = None if validation is None else _tensors(validation, process.device)
        self._left_out = set() if validation is None else {*validation.stand_ins}

    @property
    def num_replaced(self) -> int:
        """Known from the start."""
        return self._num_replaced

    def trained(self, model: CountNet) -> nn.Module:
        return model.head

    def batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        # One index for all views: whole rows are copied at memory's pace. And one for the epoch,
        # so that a GPU that has the features is not asked to wait for each step's.
        parts = [*self.order.batches(epoch, first_step)]
        samples = torch.from_numpy(np.concatenate(parts)) if parts else torch.empty(0).long()
        rows = self._taken[samples]
        if self._flip:
            second = mirrored(self._keys[samples.numpy()], self.order.seed, epoch)
            rows += torch.from_numpy(second).long() * len(self._train_labels)
        rows, both = rows.to(self._train.device), self._train.flatten(0, 1)
        for indices, at in zip(parts, rows.split([*map(len, parts)]), strict=True):
            labels = self._train_labels.index_select(0, at % len(self._train_labels))
            yield self._batch(indices, both.index_select(0, at), labels)

    def validate(self, model: CountNet, pause: Callable[[], None]) -> Evaluation | None:
        if self._validation is None:
            return None
        values, labels = self._validation
        process, size = self._process, self._eval_batch_size

        def batches() -> Iterator[Batch]:
            for indices in evaluation_batches(len(labels), size, process.rank, process.world_size):
                indices = indices[~np.isin(indices, [*self._left_out])]
                at = torch.from_numpy(indices).to(values.device)
                yield self._batch(indices, values[0].index_select(0, at), labels[at])

        return evaluate_batches(
            model.head,
            batches(),
            len(labels),
            model.num_classes,
            process,
            batch_size=size,
            precision=self._precision,
            left_out=self._left_out,
            pause=pause,
        )

    def _batch(
        self, indices: NDArray[np.int64], values: torch.Tensor, labels: torch.Tensor
    ) -> Batch:
        device = self._process.device
        return Batch(
            values.to(device, non_blocking=True), labels.to(device, non_blocking=True), indices
        )


def make_inputs(
    config: FitConfig,
    model: CountNet,
    preprocessing: Preprocessing,
    train: Samples,
    validation: Samples,
    classes: Classes,
    engine: Engine,
    order: TrainingOrder,
    process: Process,
    precision: torch.dtype,
    pause: Callable[[], None],
) -> Inputs:
    """What a run is trained on. Features of a frozen backbone are kept from an earlier run, or
    computed now; `pause` is called meanwhile, as in `compute_features`."""
    if not config.uses_features:
        return PhotoInputs(config, train, validation, classes, engine, order, process, precision)
    backbone = model.backbone
    folder = features_folder(
        train.identity, backbone, preprocessing, precision, engine, process.device
    )
    if process.is_first:
        say(f"frozen backbone: its features are computed once, in {folder}")
    features = [
        compute_features(
            folder,
            backbone,
            samples,
            classes,
            engine,
            process,
            precision,
            mirrored=config.augment == "flip",
            on_bad_sample=config.on_bad_sample,
            pause=pause,
        )
        if len(samples)
        else None
        for samples in (train, validation)
    ]
    assert features[0] is not None, "nothing is trained on no photos"
    return FeatureInputs(config, features[0], features[1], order, process, precision)


def _tensors(features: Features, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and labels: on a GPU that has room for them there, else in the mapped file."""
    import warnings

    with warnings.catch_warnings():
        # The file is mapped for reading; nothing here writes.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensors = torch.from_numpy(features.values), torch.from_numpy(features.labels)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if features.values.nbytes <= free * FEATURES_SHARE:
            values, labels = (tensor.to(device) for tensor in tensors)
            return values, labels
    return tensors
