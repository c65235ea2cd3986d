"""Which process this is of those that work together, its device, and in which precision."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bintally.errors import UsageError
from bintally.machine import ranks_here
from bintally.options import DeviceName, PrecisionName, check_choice

if TYPE_CHECKING:
    import torch

__all__ = ["find_device", "find_machines", "find_rank", "precision_type"]


def find_rank() -> tuple[int, int, int]:
    """This process's rank, how many there are, and its rank on its machine: by
    `torch.distributed`, else by torchrun's variables."""
    import torch.distributed as dist

    rank, num_ranks, local_rank = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    )
    if dist.is_available() and dist.is_initialized():
        rank, num_ranks = dist.get_rank(), dist.get_world_size()
    return rank, num_ranks, local_rank


def find_machines(rank: int, world_size: int) -> int:
    """The machines that ranks are spread over, by torchrun's variables: 1 where it is not known
    that each has as many of them, one after the other."""
    if "LOCAL_WORLD_SIZE" not in os.environ or world_size % ranks_here():
        return 1
    num_machines = world_size // ranks_here()
    told = int(os.environ.get("GROUP_WORLD_SIZE", num_machines))
    in_turn = rank % ranks_here() == int(os.environ.get("LOCAL_RANK", "0"))
    return num_machines if told == num_machines and in_turn else 1


def find_device(name: DeviceName, local_rank: int = 0) -> torch.device:
    """A process's device: for `auto`, its GPU where there is one.

    Raises `UsageError` for another name, and for `cuda` where there is none.
    """
    import torch

    check_choice("device", name, DeviceName)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no GPU here")
    return torch.device("cuda", local_rank) if name == "cuda" else torch.device("cpu")


def precision_type(name: PrecisionName, device: torch.device) -> torch.dtype:
    """The type that the model computes in: for `auto`, bf16 where the hardware multiplies it.

    Raises `UsageError` for another name.
    """
    import torch

    check_choice("precision", name, PrecisionName)
    if name == "auto":
        # Without such instructions bf16 is emulated, slower than fp32.
        if device.type == "cuda":
            able = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            able = any(torch.cpu.get_capabilities().get(feature) for feature in CPU_BF16)
        name = "bf16" if able else "fp32"
    return torch.bfloat16 if name == "bf16" else torch.float32


CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
