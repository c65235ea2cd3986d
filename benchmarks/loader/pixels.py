"""From JPEG bytes to the model's input with packages alone, as an expert would: simplejpeg decodes,
PyTorch resizes bytes in the order that they lie in, and a batch is normalised as a whole.

Bytes travel between workers, for they are a quarter of the floats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.loader.workload import PREPROCESSING, Batches, Workload

if TYPE_CHECKING:
    import torch

__all__ = ["normalised", "pixels"]


def pixels(data: bytes, least: int = 2) -> torch.Tensor:
    """(224, 224, 3) uint8, at random mirrored.

    The photo is decoded at half its size, a quarter or an eighth as long as `least` times the size
    that is needed is left; with 2 that is our CPU engine's rule.
    """
    import simplejpeg
    import torch
    from torch.nn.functional import interpolate

    size = PREPROCESSING.image_size
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    reduction = 1
    while reduction < 8 and min(height, width) >= 2 * least * reduction * size:
        reduction *= 2
    photo = simplejpeg.decode_jpeg(
        data, min_height=-(-height // reduction), min_width=-(-width // reduction)
    )
    planes = torch.from_numpy(photo).permute(2, 0, 1)[None]
    planes = interpolate(planes, (size, size), mode="bilinear", antialias=True)
    if torch.rand(()) < 0.5:
        planes = planes.flip(3)
    return planes[0].permute(1, 2, 0).contiguous()


def normalised(batches: Batches, workload: Workload) -> Batches:
    """(batch, 224, 224, 3) uint8 to what all have to deliver, on the workload's device."""
    import torch

    size = PREPROCESSING.image_size
    # As long as a photo, for three numbers over and over would be three steps at a time.
    mean, std = (
        torch.tensor(values, device=workload.device).mul(255).tile(size * size)
        for values in (PREPROCESSING.mean, PREPROCESSING.std)
    )
    scale, shift = 1 / std, -mean / std
    for images, classes in batches:
        floats = images.to(workload.device, non_blocking=True).flatten(1).to(torch.float32)
        floats = torch.addcmul(shift, floats, scale)
        yield (
            floats.view(-1, size, size, 3).permute(0, 3, 1, 2),
            classes.to(workload.device, non_blocking=True),
        )
