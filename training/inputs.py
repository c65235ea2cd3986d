"""What the model is trained on: photos decoded again every epoch, or kept features of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from training.config import FitConfig
from training.distributed import Process
from training.engine import Engine
from training.evaluate import Evaluation, evaluate, evaluate_batches
from training.features import Features
from training.loader import Batch, load
from training.model import CountNet
from training.order import (
    epoch_order,
    evaluation_batches,
    flips,
    rank_slice,
    training_batches,
)
from training.samples import Samples

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FeatureInputs", "Inputs", "PhotoInputs"]


class Inputs(Protocol):
    """The input of a run's steps and evaluations."""

    num_samples: int
    """To train on."""

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The global order of an epoch."""

    def trained(self, model: CountNet) -> nn.Module:
        """The part of the model that takes this input."""

    def batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """This process's parts of an epoch's batches from a step on, `accumulate` for each step."""

    def validate(self, model: CountNet, pause: Callable[[], None]) -> Evaluation | None:
        """The model's answers on the validation split, if there is one; see `evaluate`."""


Windows = tuple["NDArray[np.int64]", int] | None


class _Order:
    """Which samples are taken when: the epoch's order, whatever the input is."""

    def __init__(
        self,
        config: FitConfig,
        process: Process,
        counts: NDArray[np.int64],
        windows: Windows = None,
    ) -> None:
        """`counts` and `windows`: see `epoch_order`."""
        self._config, self._process, self._windows = config, process, windows
        self._counts = counts

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """The global order."""
        balanced = self._counts if self._config.balanced_order else None
        seed = self._config.seed
        number = len(self._counts)
        return epoch_order(number, seed, epoch, labels=balanced, windows=self._windows)

    def parts(self, epoch: int, first_step: int) -> Iterator[NDArray[np.int64]]:
        """This process's parts of the steps, `accumulate` for each."""
        config, process = self._config, self._process
        for batch in training_batches(self.epoch(epoch), config.batch_size, first_step):
            mine = rank_slice(batch, process.rank, process.world_size)
            for part in range(config.accumulate):
                yield rank_slice(mine, part, config.accumulate)


class PhotoInputs:
    """Photos, decoded ahead of the model."""

    def __init__(
        self,
        config: FitConfig,
        train: Samples,
        validation: Samples,
        classes: Sequence[int],
        engine: Engine,
        process: Process,
        precision: torch.dtype,
    ) -> None:
        self.num_samples = len(train)
        self._config, self._train, self._validation = config, train, validation
        self._order = _Order(config, process, train.all_counts(), train.windows)
        self._replaced: dict[int, int] | None = {} if config.on_bad_sample == "skip" else None
        self._classes, self._engine, self._process = classes, engine, process
        self._precision = precision

    def trained(self, model: CountNet) -> nn.Module:
        """See `Inputs`."""
        return model

    def order(self, epoch: int) -> NDArray[np.int64]:
        """See `Inputs`."""
        return self._order.epoch(epoch)

    def batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """See `Inputs`."""
        return load(
            self._train,
            self._classes,
            self._engine,
            self._order.parts(epoch, first_step),
            lambda indices: flips(indices, self._config.seed, epoch),
            whole_order=self._order.epoch(epoch),
            replaced=self._replaced,
        )

    def validate(self, model: CountNet, pause: Callable[[], None]) -> Evaluation | None:
        """See `Inputs`."""
        if not len(self._validation):
            return None
        return evaluate(
            model,
            self._validation,
            self._classes,
            self._engine,
            self._process,
            batch_size=self._config.batch_size,
            precision=self._precision,
            pause=pause,
        )


class FeatureInputs:
    """Kept features of both views of each photo, on the model's device."""

    def __init__(
        self,
        config: FitConfig,
        train: Features,
        validation: Features | None,
        process: Process,
        precision: torch.dtype,
        windows: Windows = None,
    ) -> None:
        """`windows` are those of the photos, where they are streamed: the order is the same."""
        self.num_samples = len(train.labels)
        self._order = _Order(config, process, train.labels, windows)
        self._config, self._process, self._precision = config, process, precision
        self._train, self._train_labels = _tensors(train)
        self._validation = None if validation is None else _tensors(validation)

    def trained(self, model: CountNet) -> nn.Module:
        """See `Inputs`."""
        return model.head

    def order(self, epoch: int) -> NDArray[np.int64]:
        """See `Inputs`."""
        return self._order.epoch(epoch)

    def batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """See `Inputs`."""
        for indices in self._order.parts(epoch, first_step):
            views = torch.from_numpy(flips(indices, self._config.seed, epoch)).long()
            at = torch.from_numpy(indices)
            yield self._batch(indices, self._train[views, at], self._train_labels[at])

    def validate(self, model: CountNet, pause: Callable[[], None]) -> Evaluation | None:
        """See `Inputs`."""
        if self._validation is None:
            return None
        values, labels = self._validation
        process, size = self._process, self._config.batch_size

        def batches() -> Iterator[Batch]:
            for indices in evaluation_batches(len(labels), size, process.rank, process.world_size):
                at = torch.from_numpy(indices)
                yield self._batch(indices, values[0, at], labels[at])

        return evaluate_batches(
            model.head,
            batches(),
            len(labels),
            model.num_classes,
            process,
            batch_size=size,
            precision=self._precision,
            pause=pause,
        )

    def _batch(
        self, indices: NDArray[np.int64], values: torch.Tensor, labels: torch.Tensor
    ) -> Batch:
        device = self._process.device
        return Batch(
            indices,
            values.to(device, non_blocking=True),
            labels.to(device, non_blocking=True),
            0.0,
        )


def _tensors(features: Features) -> tuple[torch.Tensor, torch.Tensor]:
    import warnings

    with warnings.catch_warnings():
        # The file is mapped for reading; nothing here writes.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(features.values), torch.from_numpy(features.labels)
