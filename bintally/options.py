"""What may be chosen from, by name. Imports nothing heavy, so that command lines are read fast."""

from __future__ import annotations

from typing import Literal

__all__ = ["DeviceName", "EngineName", "OnBadSample", "PrecisionName", "Trainable"]

DeviceName = Literal["auto", "cpu", "cuda"]
EngineName = Literal["auto", "dali", "cpu"]
OnBadSample = Literal["stop", "skip"]
PrecisionName = Literal["auto", "fp32", "bf16"]
Trainable = Literal["head", "all"]
