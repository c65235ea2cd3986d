"""The loader: epochs of a split's batches, decoded ahead of the model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from bintally.dataset.labels import Classes
from bintally.dataset.manifest import read_dataset
from bintally.dataset.samples import Samples
from bintally.dataset.shard_cache import shard_cache
from bintally.device import find_device, find_machines, find_rank
from bintally.errors import UsageError
from bintally.loading.augmentation import Augmentation
from bintally.loading.batches import Batch, load
from bintally.loading.engine import Engine
from bintally.loading.engines import make_engine
from bintally.loading.order import EvaluationOrder, Order, TrainingOrder
from bintally.loading.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from bintally.options import (
    DOWNLOADS,
    AugmentName,
    DeviceName,
    EngineName,
    OnBadSample,
    check_choice,
)
from bintally.storage.opening import open_place

__all__ = ["EpochLoader", "Loader"]


class EpochLoader:
    """This rank's batches of training, epoch after epoch, and how far they have come.

    The order is a pure function of the dataset, the seed and the epoch (see `EpochOrder`). So two
    integers say where it stands, on any number of ranks: the `epoch` and `step` of what comes next.
    """

    def __init__(
        self,
        samples: Samples,
        classes: Classes,
        engine: Engine,
        order: Order,
        on_bad_sample: OnBadSample = "stop",
        *,
        augment: Augmentation | None = None,
    ) -> None:
        self.samples, self.classes, self.engine, self.order = samples, classes, engine, order
        self.epoch = self.step = 0
        self.replaced: dict[int, int] = {}
        """Samples that did not decode here, and what has come in their place."""
        self._on_bad_sample = on_bad_sample
        self._augment = augment or Augmentation()

    def state_dict(self) -> dict[str, int]:
        """Where it stands."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on where another loader stood, of the same dataset, seed and batch size."""
        self.epoch, self.step = state["epoch"], state["step"]

    def __iter__(self) -> Iterator[Batch]:
        """What is left of the epoch; at its end the next one begins.

        Raises `WorkError`, naming shard and sample, where a photo does not decode and
        `on_bad_sample` is `stop`; with `skip` the next photo of its shard comes in its place.
        """
        epoch, order = self.epoch, self.order
        batches = load(
            self.samples,
            self.classes,
            self.engine,
            order.batches(epoch, self.step),
            partial(self._augment.draw, seed=order.seed, epoch=epoch),
            schedule=order.schedule(epoch, self.step),
            replaced=self.replaced if self._on_bad_sample == "skip" else None,
        )
        for number, batch in enumerate(batches, 1):
            # All parts of a step belong to it.
            self.step += number % order.parts == 0
            yield batch
        self.epoch, self.step = epoch + 1, 0


class Loader(EpochLoader):
    """Batches of a split of a dataset, for a training or an evaluation of one's own.

    A `for` over it is an epoch; the next `for` is the next epoch, also where the last one was left
    early. Under `torchrun`, or where `torch.distributed` is initialised, each rank gets its part of
    every batch. Photos are decoded ahead of the model, on threads, or on the GPU with NVIDIA DALI.

    - `train`: shuffled anew each epoch, by a function of dataset, seed and epoch that does not
      depend on the number of ranks. Whole batches only: the rest of an epoch is left out.
    - `validation`, `test`: every sample once, in the split's own order, the last batch shorter.

    `classes[label]` is the count that a label stands for; `epoch` and `step` say what comes next.
    It pickles: the copy opens the dataset anew, and stands where this one stood.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        batch_size: int,
        split: Literal["train", "validation", "test"] = "train",
        seed: int = 0,
        image_size: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        augment: AugmentName | Augmentation | None = None,
        where: str | None = None,
        device: DeviceName = "auto",
        engine: EngineName = "auto",
        cache: str | os.PathLike[str] | None = None,
        cache_gib: float = 0.0,
        downloads: int = DOWNLOADS,
        lanes: int = 0,
        window: int = 0,
        on_bad_sample: OnBadSample = "stop",
    ) -> None:
        """Opens the dataset that `source` names: a folder, or s3://BUCKET/PREFIX.

        - `batch_size`: of a step, all ranks together.
        - `image_size`: pixels; photos are stretched to a square.
        - `mean`, `std`: of each channel, on a scale of 0 to 1; ImageNet's by default.
        - `augment`: `none`, `flip`, `light`, `imagenet` (see `Augmentation.named`), or an
          `Augmentation` with other numbers; by default `flip` for `train`, else `none`. A photo of
          an epoch comes alike on any number of ranks, and after a resume.
        - `where`: only the samples for which this is true, an expression over the columns of the
          dataset's catalog: `"count <= 3"`, `"width > 400 and count in (1, 2)"`.
        - `device`: where batches are; `auto` is this rank's GPU, where there is one.
        - `engine`: what decodes; `auto` is DALI on a GPU, where it is installed, else the CPU's.
        - `cache`: the folder to which shards are brought, from S3 or from a slow folder;
          `cache_gib` is the most that it may hold, 0 is no limit. Ranks of a machine share it, and
          `downloads`, the shards that are on their way at a time.
        - `lanes`, `window`: of the order (see `EpochOrder`), 0 follows from the number of shards.
          Machines divide the lanes, and each fetches its own.
        - `on_bad_sample`: where a photo does not decode, `stop` raises `WorkError`, and `skip`
          takes the next one of its shard in its place.

        Raises `UsageError` for a value or a place that cannot be used, `WorkError` where the
        dataset is not complete or damaged.
        """
        # What a copy is made with, before anything else is called by a name here.
        self._arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        augment = augment or ("flip" if split == "train" else "none")
        if not isinstance(augment, Augmentation):
            augment = Augmentation.named(augment)
        check_choice("on_bad_sample", on_bad_sample, OnBadSample)
        for name, value, least in (
            ("batch_size", batch_size, None),
            ("seed", seed, None),
            ("image_size", image_size, 1),
            ("downloads", downloads, 1),
            ("lanes", lanes, 0),
            ("window", window, 0),
        ):
            if type(value) is not int:
                raise UsageError(f"{name} {value!r}: must be a whole number")
            if least is not None and value < least:
                raise UsageError(f"{name} {value}: must be at least {least}")
        rank, num_ranks, local_rank = find_rank()
        if batch_size < num_ranks:
            raise UsageError(
                f"batch_size {batch_size}: must be at least 1 for each of the {num_ranks} ranks"
            )
        place = open_place(source)
        # A copy may be made in another folder.
        self._arguments["source"] = str(getattr(place, "root", place))
        self._arguments["cache"] = None if cache is None else str(Path(cache).absolute())
        dataset = read_dataset(place)
        kept = shard_cache(None if cache is None else Path(cache), cache_gib, downloads)
        samples = Samples(place, dataset, split, kept, where)
        order: Order
        if split == "train":
            if len(samples) < batch_size:
                raise UsageError(
                    f"batch_size {batch_size}: the train split has only {len(samples)} samples"
                    f"{'' if where is None else f' where {where}'}"
                )
            training = TrainingOrder(
                samples.sizes,
                batch_size,
                seed,
                lanes,
                window,
                rank=rank,
                world_size=num_ranks,
                num_machines=find_machines(rank, num_ranks),
            )
            training.check_room(samples)
            lanes, window, order = training.lanes, training.window, training
        else:
            order = EvaluationOrder(samples.sizes, batch_size, seed, rank, num_ranks)
        part = -(-batch_size // num_ranks)
        preprocessing = Preprocessing(image_size, _three("mean", mean), _three("std", std))
        super().__init__(
            samples,
            dataset.classes,
            make_engine(engine, preprocessing, find_device(device, local_rank), part),
            order,
            on_bad_sample,
            augment=augment,
        )
        self._begun = False
        self._identity: dict[str, int | str] = {
            "dataset": dataset.sha256,
            "split": split,
            "seed": seed,
            "batch_size": batch_size,
            "where": where or "",
            "lanes": lanes,
            "window": window,
        }

    def __len__(self) -> int:
        """This rank's batches of an epoch."""
        return self.order.steps

    def __iter__(self) -> Iterator[Batch]:
        """An epoch, or what is left of the one that `load_state_dict` named."""
        if self._begun:
            self.epoch, self.step = self.epoch + 1, 0
        self._begun = True
        yield from super().__iter__()
        self._begun = False

    def state_dict(self) -> dict[str, Any]:
        """Which batch comes next, and of what: plain integers and strings, good for any number of
        ranks. Within a loop, the batch at hand counts as done."""
        ended = self.step == len(self)
        where = {"epoch": self.epoch + ended, "step": 0 if ended else self.step}
        return where | self._identity

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Has the next `for` go on where a loader of the same data stood.

        Raises `ValueError` where dataset, split, seed, batch size, filter, lanes or window differ.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise ValueError(
                    f"{name} is {value!r} here, and was {state.get(name)!r} where the state is from"
                )
        epoch, step = state.get("epoch"), state.get("step")
        if not (type(epoch) is type(step) is int and epoch >= 0 and 0 <= step <= len(self)):
            raise ValueError(f"epoch {epoch!r}, step {step!r}: no place in epochs of {len(self)}")
        self.epoch, self.step, self._begun = epoch, step, False

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._arguments, self.state_dict())


def _reopen(arguments: dict[str, Any], state: dict[str, Any]) -> Loader:
    loader = Loader(**arguments)
    loader.load_state_dict(state)
    return loader


def _three(name: str, values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) != 3:
        raise UsageError(f"{name} {values}: must be three numbers, one for each channel")
    red, green, blue = values
    return float(red), float(green), float(blue)
