"""Augmentation: what an epoch changes of a photo, a pure function of (seed, epoch, id).

Keyed hashes of the sample's id decide, as they do in the order. So a sample comes alike after a
resume, on any number of ranks, and wherever it lies in a batch; and engines, which are told boxes
and colours as numbers, give the same pixels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bintally.errors import UsageError
from bintally.loading.lanes import random_bits
from bintally.options import AugmentName, check_choice

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Augmentation", "Draws", "id_keys", "mirrored"]

TRIES = 10
"""Crops that are drawn until one fits, as torchvision's RandomResizedCrop does."""
CROP = 2 * TRIES + 2
"""What is drawn for a crop: an area and a ratio for each try, and where it lies."""
LUMA = np.array([0.299, 0.587, 0.114])
"""What red, green and blue are to a grey of the same brightness (ITU-R BT.601, as in JPEG)."""
GREY = 128.0
"""What contrast leaves as it is."""


BOUNDS = {
    "flip": (0, 1),
    "area": (0.001, 1),
    "ratio": (0.01, 100),
    "scale": (0.1, 10),
    "shift": (0, 1),
    "brightness": (0, 1),
    "contrast": (0, 1),
    "saturation": (0, 1),
}
"""What the numbers of an augmentation may be."""


@dataclass(frozen=True)
class Draws:
    """What was drawn for the photos of a batch."""

    mirrored: NDArray[np.bool_]
    """(photos,) after all else."""
    boxes: NDArray[np.float32] | None = None
    """(photos, 4) the part of each that is stretched to the output: left, top, right and bottom in
    shares of its width and height. Beyond its edge the outermost pixels are repeated. None is all
    of it."""
    colours: NDArray[np.float32] | None = None
    """(photos, 3, 4) what comes of red, green, blue and 1 after the resize, on a scale of 0 to 255,
    to which it is then cut off. None leaves them as they are."""

    @classmethod
    def nothing(cls, number: int) -> Draws:
        """For photos that are taken as they are."""
        return cls(np.zeros(number, bool))

    def __getitem__(self, part: slice) -> Draws:
        """Those of some of the photos."""
        return Draws(
            self.mirrored[part],
            None if self.boxes is None else self.boxes[part],
            None if self.colours is None else self.colours[part],
        )


@dataclass(frozen=True)
class Augmentation:
    """What is drawn at random for each photo and epoch; without any number, nothing.

    `Augmentation.named` has those with a name. `dataclasses.replace` changes their numbers:
    `replace(Augmentation.named("light"), flip=0.0)`. Photos are cropped, then moved, stretched to
    the output, coloured, and mirrored. Raises `UsageError` for numbers that make no sense.
    """

    flip: float = 0.0
    """The probability with which a photo is mirrored."""
    area: tuple[float, float] | None = None
    """The least and the most of a photo's area that a crop keeps, somewhere in the photo, as
    torchvision's RandomResizedCrop does; None crops nothing."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """The least and the greatest width of a crop, by its height, both in pixels of the photo."""
    scale: tuple[float, float] = (1.0, 1.0)
    """The least and the greatest size at which a photo (or crop) is shown, by the output's: below 1
    all of it, the rest filled by repeating its outermost pixels; above 1 a part."""
    shift: float = 0.0
    """How far it moves in the room that `scale` leaves, or covers: 0 not at all, 1 as far as the
    output's edge."""
    brightness: float = 0.0
    """All colours are multiplied by up to so much more or less than 1."""
    contrast: float = 0.0
    """The same for their distance from the grey in the middle, 128 of 255."""
    saturation: float = 0.0
    """The same for their distance from a grey as bright as they are."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, (least, most) = getattr(self, field.name), BOUNDS[field.name]
            if isinstance(field.default, float):
                if not _is_number(value, least, most):
                    raise UsageError(f"{field.name} {value}: must be from {least} to {most}")
            elif value is not None or field.name != "area":
                is_pair = isinstance(value, Sequence) and len(value) == 2
                if not (is_pair and all(_is_number(v, least, most) for v in value)) or (
                    value[0] > value[1]
                ):
                    raise UsageError(
                        f"{field.name} {value}: must be two numbers from {least} to {most}, "
                        "the smaller one first"
                    )

    @staticmethod
    def named(name: AugmentName) -> Augmentation:
        """One of those that have a name.

        - `none`: photos as they are.
        - `flip`: every other photo is mirrored.
        - `light`: that, and what keeps every item in view: the photo at 85 to 100% of the output's
          size, anywhere in it, and up to a fifth more or less brightness, contrast and saturation.
        - `imagenet`: a crop of 8 to 100% of the photo's area, and `flip`: as ImageNet's
          classifiers are trained. Items may be cut off, which is no good for counting them.

        Raises `UsageError` for another name.
        """
        check_choice("augment", name, AugmentName)
        flip = Augmentation(flip=0.5)
        if name == "light":
            moved = replace(flip, scale=(0.85, 1.0), shift=1.0)
            return replace(moved, brightness=0.2, contrast=0.2, saturation=0.2)
        if name == "imagenet":
            return replace(flip, area=(0.08, 1.0))
        return flip if name == "flip" else Augmentation()

    def draw(
        self, ids: Sequence[str], photos: Sequence[NDArray[np.uint8]], seed: int, epoch: int
    ) -> Draws:
        """What an epoch makes of samples: `ids` decide, and of `photos`, their JPEG bytes, the size
        in pixels where there are crops."""
        uniform = _Uniform(id_keys(ids), seed, epoch)
        return Draws(
            mirrored(uniform.keys, seed, epoch, self.flip),
            self._boxes(uniform, photos),
            self._colours(uniform),
        )

    def _boxes(
        self, uniform: _Uniform, photos: Sequence[NDArray[np.uint8]]
    ) -> NDArray[np.float32] | None:
        if self.area is None and self.scale == (1.0, 1.0):
            return None
        boxes = np.tile([0.0, 0.0, 1.0, 1.0], (len(photos), 1))
        if self.area is not None:
            boxes = _crops(self.area, self.ratio, uniform.many("crop", CROP), _sizes(photos))
        extents = boxes[:, 2:] - boxes[:, :2]
        shown = extents / uniform("scale", *self.scale)[:, None]
        moves = np.stack([uniform("across", -1, 1), uniform("down", -1, 1)], axis=1)
        centres = (boxes[:, :2] + boxes[:, 2:] + self.shift * moves * (shown - extents)) / 2
        return np.hstack([centres - shown / 2, centres + shown / 2]).astype(np.float32)

    def _colours(self, uniform: _Uniform) -> NDArray[np.float32] | None:
        """One affine map for the three factors: brightness of contrast of saturation. So nothing is
        cut off in between, as it would be were they applied one by one."""
        amounts = {"brightness": self.brightness, "contrast": self.contrast}
        amounts["saturation"] = self.saturation
        if not any(amounts.values()):
            return None
        brightness, contrast, saturation = (
            uniform(name, 1 - amount, 1 + amount)[:, None, None] for name, amount in amounts.items()
        )
        linear = saturation * np.eye(3) + (1 - saturation) * LUMA
        offsets = np.tile(GREY * (1 - contrast), (3, 1))
        mix = np.concatenate([contrast * linear, offsets], axis=2)
        return np.asarray(brightness * mix, np.float32)


class _Uniform:
    """Numbers from a range, each as likely, for the samples of some keys in an epoch."""

    def __init__(self, keys: NDArray[np.uint64], seed: int, epoch: int) -> None:
        self.keys, self._seed, self._epoch = keys, seed, epoch

    def __call__(self, purpose: str, least: float = 0.0, most: float = 1.0) -> NDArray[np.float64]:
        """(samples,)"""
        return least + (most - least) * _uniform(self.keys, self._seed, self._epoch, purpose)

    def many(self, purpose: str, number: int) -> NDArray[np.float64]:
        """(number, samples) from 0 to 1, faster than one by one."""
        keys = random_bits(self.keys, self._seed, self._epoch, purpose)
        keys = keys + np.arange(number, dtype=np.uint64)[:, None]
        return _uniform(keys, self._seed, self._epoch, purpose)


def id_keys(ids: Sequence[str]) -> NDArray[np.uint64]:
    """(samples,) 64 bits for each id: what its draws are keyed by."""
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def mirrored(
    keys: NDArray[np.uint64], seed: int, epoch: int, probability: float = 0.5
) -> NDArray[np.bool_]:
    """(samples,) which of them are mirrored in an epoch; `keys` are those of their ids."""
    return _uniform(keys, seed, epoch, "flip") < probability


def _uniform(keys: NDArray[np.uint64], seed: int, epoch: int, purpose: str) -> NDArray[np.float64]:
    """From 0 to below 1: the same on every machine, for 53 bits fit a double."""
    bits = random_bits(keys, seed, epoch, purpose) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def _crops(
    area: tuple[float, float],
    ratio: tuple[float, float],
    draws: NDArray[np.float64],
    sizes: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(photos, 4) boxes of whole pixels, in shares.

    `draws` is (CROP, photos): the areas of all tries, the ratios, left, and top; `sizes`
    (2, photos), width and height. The first try that fits is taken, and where none does, as much of
    the middle as the ratio allows.
    """
    width, height = sizes
    areas = (area[0] + (area[1] - area[0]) * draws[:TRIES]) * width * height
    low, high = map(math.log, ratio)
    ratios = np.exp(low + (high - low) * draws[TRIES:-2])
    tries = np.rint(np.sqrt([areas * ratios, areas / ratios]))
    fits = ((tries > 0) & (tries <= sizes[:, None])).all(axis=0)
    first = np.take_along_axis(tries, fits.argmax(axis=0)[None, None], axis=1)[:, 0]
    middle = np.rint([np.minimum(width, height * ratio[1]), np.minimum(height, width / ratio[0])])
    middle = np.maximum(middle, 1)
    crops = np.where(fits.any(axis=0), first, middle)
    corners = np.floor(
        np.where(fits.any(axis=0), draws[-2:] * (sizes - crops + 1), (sizes - crops) / 2)
    )
    return np.concatenate([corners / sizes, (corners + crops) / sizes]).T


def _sizes(photos: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """(2, photos) widths and heights, from the headers."""
    import simplejpeg

    sizes = np.ones((2, len(photos)))
    for position, photo in enumerate(photos):
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(photo)
        except (ValueError, KeyError):
            continue  # The engine says what is wrong with it.
        sizes[:, position] = width, height
    return sizes


def _is_number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and least <= value <= most
