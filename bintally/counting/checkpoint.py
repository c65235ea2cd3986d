"""A checkpoint: one file with all that is needed to go on, or at least to evaluate and to predict.

Written aside and renamed. Loaded with `weights_only`: nothing that a file holds is executed.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bintally.counting.decision import Decision
from bintally.counting.model import CountNet, build_model
from bintally.dataset.labels import Classes
from bintally.errors import UsageError
from bintally.loading.preprocessing import Preprocessing
from bintally.storage.folder import write_atomically

__all__ = [
    "Checkpoint",
    "checkpoint_bytes",
    "parse_checkpoint",
    "read_checkpoint",
    "write_checkpoint",
]


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds, as a dict with these keys; `last.pt` all, `best.pt` what counts photos."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    """The learning rate's schedule, a pure function of the step."""
    ema: dict[str, Tensor] | None
    """Averaged weights by name, where a recipe has them: evaluated in place of `model`'s."""
    scaler: dict[str, Any] | None
    """The state of a gradient scaler; bf16 needs none."""
    random: dict[str, int]
    """The seed: everything random is a function of it, the epoch and the step."""
    epoch: int
    """Whole epochs done."""
    step: int
    """Steps done of the epoch begun."""
    sums: dict[str, float]
    """Sums of the epoch begun over its steps done."""
    best: dict[str, Any]
    """Epoch and validation metrics of the best checkpoint so far; empty before the first."""
    config: dict[str, Any]
    dataset: str
    """sha256 of `dataset.json`."""
    classes: Classes
    """Class i is the count, or name, `classes[i]`: a list."""
    preprocessing: dict[str, Any]
    stopped: str = ""
    """Why the run ended before its last epoch, if it did."""
    decision: dict[str, Any] = field(default_factory=lambda: Decision().to_dict())
    """The decision rule and the temperature, of the last validation; older versions wrote none."""

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self.epoch >= self.config["epochs"] or bool(self.stopped)

    @property
    def resumable(self) -> bool:
        """Whether training can go on from it."""
        return bool(self.optimizer)

    def for_counting(self) -> Checkpoint:
        """What counts photos of it: without what only training goes on with."""
        return replace(
            self,
            model=self.model | (self.ema or {}),
            optimizer={},
            schedule={},
            ema=None,
            scaler=None,
            random={},
            sums={},
        )

    def build(self) -> tuple[CountNet, Preprocessing]:
        """The model with its weights, in evaluation mode, and how photos are prepared for it."""
        model, _ = build_model(
            self.config["backbone"],
            "none",
            image_size=self.preprocessing["image_size"],
            head_width=self.config["head_width"],
            num_classes=len(self.classes),
            trainable=self.config["trainable"],
            # Checkpoints of the first version have no such setting.
            dropout=self.config.get("dropout", 0.0),
        )
        model.load_state_dict(self.model | (self.ema or {}))
        return model.eval(), Preprocessing.from_dict(self.preprocessing)


def checkpoint_bytes(checkpoint: Checkpoint) -> bytes:
    """The bytes of a checkpoint's file."""
    buffer = io.BytesIO()
    torch.save(vars(checkpoint), buffer)
    return buffer.getvalue()


def write_checkpoint(file: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint, whole or not at all."""
    write_atomically(file, checkpoint_bytes(checkpoint))


def read_checkpoint(file: Path) -> tuple[Checkpoint, str]:
    """Reads a checkpoint; also returns the file's sha256.

    Raises `UsageError` where there is no file, or it is not one of our checkpoints.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from error
    return parse_checkpoint(data, file), hashlib.sha256(data).hexdigest()


def parse_checkpoint(data: bytes, file: Path) -> Checkpoint:
    """The checkpoint that a file's bytes hold.

    Raises `UsageError` where they are not one of our checkpoints.
    """
    try:
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        checkpoint = Checkpoint(**value)
        Decision.from_dict(checkpoint.decision)
        return checkpoint
    except Exception as error:
        # The unpickler runs over whatever bytes there are, and raises what comes of it.
        raise UsageError(
            f"{file}: not a checkpoint of `bintally fit` (best.pt or last.pt of a run)"
        ) from error
