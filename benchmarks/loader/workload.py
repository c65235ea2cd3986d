"""What every loader under test is given, and what each has to make of it.

Decode, stretch to 224×224 with antialiased bilinear interpolation, flip with probability 0.5,
normalise; float32 (batch, 3, 224, 224) on the workload's device, with the classes beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bintally.loading.preprocessing import Preprocessing

if TYPE_CHECKING:
    import torch

Batches = Iterator[tuple["torch.Tensor", "torch.Tensor"]]
"""Photos and their classes."""
Settings = dict[str, str | int | bool]
"""How a contestant is set up, for the reader."""

__all__ = ["BATCH_SIZE", "PREPROCESSING", "SHUFFLE_BUFFER", "Batches", "Settings", "Workload"]

BATCH_SIZE = 64
SHUFFLE_BUFFER = 1000
PREPROCESSING = Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Workload:
    """What every contestant is given."""

    shards: Path
    """The dataset's folder."""
    tars: tuple[str, ...]
    """The train split's shards and their DALI indexes."""
    indexes: tuple[str, ...]
    image_folder: Path
    """The same photos as files, a folder for each class."""
    classes: tuple[int, ...]
    class_counts: tuple[int, ...]
    """Photos of each class."""
    device: Literal["cpu", "cuda"]
    num_workers: int
    """As many as there are cores."""
    scratch: Path
    """Where what a peer reads is written."""

    @property
    def num_photos(self) -> int:
        return sum(self.class_counts)

    @property
    def num_wds_workers(self) -> int:
        """webdataset gives whole shards to workers, and fails where one gets none."""
        return min(self.num_workers, len(self.tars))
