"""What may be chosen from, by name. Imports nothing heavy, so that command lines are read fast."""

from __future__ import annotations

from typing import Literal

__all__ = ["Augmentation", "DeviceName", "EngineName", "OnBadSample", "PrecisionName", "Trainable"]

Augmentation = Literal["flip", "none"]
DeviceName = Literal["auto", "cpu", "cuda"]
EngineName = Literal["auto", "dali", "cpu"]
OnBadSample = Literal["stop", "skip"]
PrecisionName = Literal["auto", "fp32", "bf16"]
Trainable = Literal["head", "all"]
