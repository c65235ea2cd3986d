"""What may be chosen from, by name. Imports nothing heavy, so that command lines are read fast."""

from __future__ import annotations

from typing import Any, Literal, get_args

from bintally.errors import UsageError

__all__ = [
    "DOWNLOADS",
    "AugmentName",
    "DeviceName",
    "EngineName",
    "OnBadSample",
    "PrecisionName",
    "Trainable",
    "check_choice",
]

DOWNLOADS = 16
"""Shards on their way at a time. S3 gives some 90 MB/s to a connection: enough for eight GPUs'
photos of the original size."""

AugmentName = Literal["none", "flip", "light", "imagenet"]
DeviceName = Literal["auto", "cpu", "cuda"]
EngineName = Literal["auto", "dali", "cpu"]
OnBadSample = Literal["stop", "skip"]
PrecisionName = Literal["auto", "fp32", "bf16"]
Trainable = Literal["head", "all"]


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raises `UsageError` where a value is none of a Literal's."""
    if value not in get_args(choices):
        raise UsageError(f"{name} {value}: must be one of {', '.join(get_args(choices))}")
