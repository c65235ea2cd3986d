"""The settings of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bintally.command import UsageError

if TYPE_CHECKING:
    import torch

__all__ = [
    "DeviceName",
    "EngineName",
    "FitConfig",
    "OnBadSample",
    "OptimizerName",
    "PrecisionName",
    "Trainable",
    "precision_type",
]

DeviceName = Literal["auto", "cpu", "cuda"]
EngineName = Literal["auto", "dali", "cpu"]
OnBadSample = Literal["stop", "skip"]
OptimizerName = Literal["adamw", "sgd"]
PrecisionName = Literal["auto", "fp32", "bf16"]
Trainable = Literal["head", "all"]


@dataclass(frozen=True)
class FitConfig:
    """Settings of `fit`."""

    shards: str
    """The dataset: a folder that `python -m sharding build` made."""
    run: Path
    """Folder of this run: checkpoints, metrics, report."""
    resume: bool = False
    """Go on from the run's last checkpoint, if there is one."""

    backbone: str = "resnet50"
    """A classifier of torchvision by name, or timm:NAME."""
    weights: str = "imagenet"
    """What the backbone begins with: imagenet (downloaded), none, or a file."""
    trainable: Trainable = "all"
    """Train the head on a frozen backbone, or everything."""
    head_width: int = 128
    """Width of the head's hidden layer."""
    image_size: int = 224
    """Pixels: photos are stretched to a square of this size."""

    epochs: int = 10
    batch_size: int = 128
    """Photos of a step, all processes together."""
    lr: float = 0.001
    """Peak learning rate; warm-up before it, a cosine to zero after."""
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 0.01
    warmup_epochs: float = 0.5
    precision: PrecisionName = "auto"
    """auto is bf16 where the GPU or CPU computes it, fp32 elsewhere."""
    seed: int = 0

    checkpoint_every_steps: int = 0
    """Write last.pt after so many steps too, and not only after every epoch."""
    engine: EngineName = "auto"
    """What decodes: NVIDIA DALI, or PyTorch on the CPU. auto is DALI where it is installed."""
    device: DeviceName = "auto"

    def check(self) -> None:
        """Raises `UsageError` for a value that makes no sense."""
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not value >= least:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{flag} {value}: must be at least {least}")
        if not self.lr > 0:
            raise UsageError(f"--lr {self.lr}: must be above 0")

    def to_dict(self) -> dict[str, Any]:
        """As a checkpoint holds it: plain types, and nothing of this machine's paths."""
        value = {k: v for k, v in asdict(self).items() if k not in WHERE_AND_HOW}
        value["weights"] = Path(self.weights).name
        return value

    def differences(self, earlier: Mapping[str, Any]) -> list[str]:
        """The settings that decide a run's result and differ from those of an earlier start."""
        mine = self.to_dict()
        return [
            f"--{name.replace('_', '-')} {earlier.get(name)} became {mine[name]}"
            for name in mine
            if earlier.get(name) != mine[name]
        ]


LEAST = {
    "head_width": 1,
    "image_size": 32,
    "epochs": 1,
    "batch_size": 1,
    "weight_decay": 0,
    "warmup_epochs": 0,
    "checkpoint_every_steps": 0,
}

WHERE_AND_HOW = {"shards", "run", "resume", "checkpoint_every_steps", "engine", "device"}
"""Settings that may differ when a run is resumed."""


def precision_type(name: PrecisionName, device: torch.device) -> torch.dtype:
    """The type that the model computes in: for `auto`, bf16 where the hardware multiplies it."""
    import torch

    if name == "auto":
        # Without such instructions a CPU emulates bf16, slower than it computes fp32.
        able = device.type == "cuda" or any(
            torch.cpu.get_capabilities().get(feature) for feature in CPU_BF16
        )
        name = "bf16" if able else "fp32"
    return torch.bfloat16 if name == "bf16" else torch.float32


CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
