"""Recipes by name. Every flag that is given beside `--preset` wins over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bintally.errors import UsageError

__all__ = ["PRESETS", "preset", "with_preset"]

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The original capstone's: a frozen backbone, Adam, a head of 2048–128–classes. Its labels,
    # normalisation, BatchNorm and number of epochs were wrong, and its learning rate was 0.099.
    "capstone": {
        "backbone": "resnet50",
        "trainable": "head",
        "head_width": 128,
        "optimizer": "adam",
        "weight_decay": 0.0,
        "lr": 0.001,
        "batch_size": 128,
        "epochs": 10,
    },
    # The best of those compared on a frozen backbone (benchmarks/training/recipes.py): 3 is nearer
    # to 4 than to 0, and what a wide head would learn by heart, dropout and averaging take away.
    "head": {
        "trainable": "head",
        "head_width": 512,
        "dropout": 0.5,
        "loss": "ordinal",
        "ema": 0.98,
        "optimizer": "adamw",
        "lr": 0.001,
        "batch_size": 128,
        "epochs": 20,
    },
    # Everything is trained: the head alone first, so that its random beginning spoils nothing.
    "finetune": {
        "trainable": "all",
        "freeze_epochs": 1,
        "optimizer": "adamw",
        "lr": 0.001,
        "backbone_lr": 0.3,
        "weight_decay": 0.05,
        "dropout": 0.5,
        "label_smoothing": 0.1,
        "ema": 0.99,
        "batch_size": 64,
        "epochs": 20,
    },
}


def preset(name: str) -> dict[str, Any]:
    """The settings of a preset, by their names in `FitConfig`.

    Raises `UsageError` for a name that there is not.
    """
    if name not in PRESETS:
        raise UsageError(f"--preset {name}: must be one of {', '.join(PRESETS)}")
    return dict(PRESETS[name])


def with_preset(arguments: Sequence[str]) -> list[str]:
    """A command line with the flags of its `--preset` put before its own, which therefore win."""
    words = [*arguments]
    if not words or words[0] != "fit":
        return words
    name = None
    for position, word in enumerate(words):
        if word.startswith("--preset="):
            name = word.removeprefix("--preset=")
        elif word == "--preset" and position + 1 < len(words):
            name = words[position + 1]
    if name is None:
        return words
    flags: list[str] = []
    for setting, value in preset(name).items():
        flags += [f"--{setting.replace('_', '-')}", str(value)]
    return ["fit", *flags, *words[1:]]
