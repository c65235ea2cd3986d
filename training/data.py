"""The dataset that a run is given: its train and validation splits, opened."""

from __future__ import annotations

from dataclasses import dataclass

from bintally.command import UsageError
from bintally.places import open_place
from sharding.dataset import Dataset, read_dataset
from training.config import FitConfig
from training.samples import Samples
from training.shards import ShardCache

__all__ = ["Data", "open_data"]


@dataclass(frozen=True)
class Data:
    """A dataset, and the samples of two of its splits."""

    dataset: Dataset
    train: Samples
    validation: Samples


def open_data(config: FitConfig) -> Data:
    """Opens what `config` names.

    Raises `UsageError` for a place that cannot be read, or holds less than a batch, `WorkError`
    where the data are damaged.
    """
    place = open_place(config.shards)
    dataset = read_dataset(place)
    cache = None
    if config.cache is not None:
        cache = ShardCache(config.cache, round(config.cache_gib * 2**30) or None)
    train, validation = (Samples(place, dataset, n, cache) for n in ("train", "validation"))
    if len(train) < config.batch_size:
        raise UsageError(
            f"--batch-size {config.batch_size}: the train split has only {len(train)} samples"
        )
    return Data(dataset, train, validation)
