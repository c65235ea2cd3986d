"""A checkpoint as an ONNX file: a photo's pixels in, its count out.

Stretching to the model's size and normalising are in the file, so that it needs nothing of ours.
"""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from bintally.counting.checkpoint import read_checkpoint
from bintally.counting.decision import PARTS, Decision, decide
from bintally.errors import UsageError, WorkError
from bintally.loading.preprocessing import Preprocessing
from bintally.storage.folder import write_atomically

__all__ = ["ExportedCounter", "export"]

OPSET = 18
TOLERANCE = 1e-3
"""Largest difference of a probability between the file and PyTorch that is let pass."""


class ExportedCounter(nn.Module):
    """A model with its preprocessing and its decision inside."""

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        classes: list[int],
        decision: Decision,
    ) -> None:
        super().__init__()
        self.model, self.decision = model, decision
        self.size = preprocessing.image_size
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1) * 255)
        self.register_buffer("classes", torch.tensor(classes))
        self.mean: Tensor
        self.std: Tensor
        self.classes: Tensor

    def forward(self, photos: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, height, width, 3) uint8 RGB to counts (batch,) int64 and probabilities
        (batch, classes) float32."""
        pixels = photos.permute(0, 3, 1, 2).float()
        down = self._weights(photos.shape[1])
        across = self._weights(photos.shape[2])
        # Rounded as the engines do, whose photos are bytes again after each direction.
        resized = (down @ (pixels @ across.T).round()).round()
        logits = self.model((resized - self.mean) / self.std)
        probabilities = (logits / self.decision.temperature).softmax(1)
        return self.classes[self._decide(probabilities)], probabilities

    def _decide(self, probabilities: Tensor) -> Tensor:
        """As `decide` does, in operations that become a part of the file."""
        if self.decision.rule == "argmax":
            return probabilities.argmax(1)
        parts = (probabilities * PARTS).round().long()
        total = parts.sum(1, keepdim=True)
        if self.decision.rule == "median":
            passed = 2 * parts.cumsum(1) < total
        else:
            mean = (parts * self.classes).sum(1, keepdim=True)
            passed = 2 * mean > total * (self.classes[:-1] + self.classes[1:])
        return passed.long().sum(1)

    def _weights(self, length: int) -> Tensor:
        """What each pixel of the result takes of each of a row: (size, length), rows add up to 1.

        Antialiased bilinear interpolation as PyTorch and Pillow define it: a triangle around the
        place where the pixel came from, as wide as the photo is shrunk. Written out as arithmetic,
        because few runtimes have the operator.
        """
        # A tensor, so that the file computes it from the photo that it is given.
        scale = torch.as_tensor(length) / self.size
        centres = (torch.arange(self.size) + 0.5) * scale
        places = torch.arange(length) + 0.5
        distance = (places[None, :] - centres[:, None]).abs() / scale.clamp(min=1)
        triangle = (1 - distance).clamp(min=0)
        return triangle / triangle.sum(1, keepdim=True)


def export(checkpoint_file: Path, output: Path) -> float:
    """Writes the ONNX file; returns the largest difference of a probability from PyTorch's.

    Raises `UsageError` where onnx or onnxruntime is not installed, for a file that is no checkpoint
    and for an output that is there and no such file, and `WorkError` where the file would not
    answer as the model does.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UsageError(
            "export needs onnx, and onnxruntime to check its file, which are not both here: "
            "pip install 'bintally[export]'"
        ) from error
    if output.exists() and not _is_exported(output):
        raise UsageError(f"--output {output}: is no ONNX file of ours, and stays; name another")
    checkpoint, _ = read_checkpoint(checkpoint_file)
    classes = [count for count in checkpoint.classes if isinstance(count, int)]
    if len(classes) < len(checkpoint.classes):
        raise UsageError(
            f"{checkpoint_file}: tells names apart, and an ONNX file of ours answers with counts"
        )
    model, preprocessing = checkpoint.build()
    decision = Decision.from_dict(checkpoint.decision)
    counter = ExportedCounter(model, preprocessing, classes, decision).eval()
    torch.manual_seed(0)
    # Larger and smaller than the model's input, wide and high; photos of one size share a batch.
    trials = [_photos(2, 300, 420), _photos(1, 333, 222), _photos(3, 24, 31)]
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Of the older exporter, which needs no onnxscript, and of the shapes that it keeps open.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            counter,
            (trials[0],),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=["photos"],
            output_names=["count", "probabilities"],
            dynamic_axes={
                "photos": {0: "batch", 1: "height", 2: "width"},
                "count": {0: "batch"},
                "probabilities": {0: "batch"},
            },
        )
    file = onnx.load_from_string(buffer.getvalue())
    told = {"classes": classes, **decision.to_dict()}
    onnx.helper.set_model_props(file, {name: json.dumps(value) for name, value in told.items()})
    data = file.SerializeToString(deterministic=True)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    worst = 0.0
    for photos in trials:
        counts, probabilities = session.run(None, {"photos": photos.numpy()})
        with torch.inference_mode():
            expected = counter(photos)[1]
        difference = (torch.from_numpy(probabilities) - expected).abs().max().item()
        worst = max(worst, difference)
        indices = decide(probabilities, classes, decision.rule)
        agrees = [classes[index] for index in indices] == counts.tolist()
        if not agrees or not difference < TOLERANCE:
            raise WorkError(
                f"{checkpoint_file}: its ONNX file would answer otherwise than the model does "
                f"(a probability differs by {difference:.2g}); nothing was written"
            )
    write_atomically(output, data)
    return worst


def _is_exported(file: Path) -> bool:
    import onnx

    try:
        return "classes" in {told.key for told in onnx.load(file).metadata_props}
    except Exception:  # The parser runs over whatever bytes there are.
        return False


def _photos(batch: int, height: int, width: int) -> Tensor:
    """Smooth pictures with some noise: (batch, height, width, 3) uint8."""
    coarse = torch.rand(batch, 3, 8, 8)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    noisy = (smooth * 235 + torch.rand(batch, 3, height, width) * 20).to(torch.uint8)
    return noisy.permute(0, 2, 3, 1).contiguous()
