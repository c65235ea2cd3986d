"""The device that a model runs on, and the precision it computes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bintally.options import PrecisionName

if TYPE_CHECKING:
    import torch

__all__ = ["precision_type"]


def precision_type(name: PrecisionName, device: torch.device) -> torch.dtype:
    """The type that the model computes in: for `auto`, bf16 where the hardware multiplies it."""
    import torch

    if name == "auto":
        # Without such instructions bf16 is emulated, slower than fp32.
        if device.type == "cuda":
            able = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            able = any(torch.cpu.get_capabilities().get(feature) for feature in CPU_BF16)
        name = "bf16" if able else "fp32"
    return torch.bfloat16 if name == "bf16" else torch.float32


CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
