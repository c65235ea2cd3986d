"""How a photo becomes the model's input. A checkpoint carries it, so that training, evaluation,
prediction and serving treat a photo alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Preprocessing"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of each channel of ImageNet's photos, as torchvision's weights expect them."""


@dataclass(frozen=True)
class Preprocessing:
    """Decode to RGB, stretch to a square with antialiased bilinear interpolation, normalise."""

    image_size: int
    """Pixels, width and height."""
    mean: tuple[float, float, float]
    """Of each channel, on a scale of 0 to 1."""
    std: tuple[float, float, float]

    def to_dict(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Preprocessing:
        return cls(int(value["image_size"]), tuple(value["mean"]), tuple(value["std"]))
