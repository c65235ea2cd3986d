"""Which engine decodes."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from bintally.errors import UsageError
from bintally.loading.engine import Engine
from bintally.loading.preprocessing import Preprocessing
from bintally.machine import num_cores, ranks_here
from bintally.options import EngineName, check_choice

if TYPE_CHECKING:
    import torch

__all__ = ["make_engine"]


def make_engine(
    name: EngineName,
    preprocessing: Preprocessing,
    device: torch.device,
    batch_size: int,
    *,
    half: bool = False,
    decode_threads: int = 0,
) -> Engine:
    """The engine called `name`; `auto` is DALI on a GPU, where it is installed, and `cpu` else.

    With `half`, for a model that computes in bf16, batches on a GPU come as float16: half of the
    memory to write and read, and finer than what bf16 keeps of them. `decode_threads` of 0 are this
    rank's share of the machine's cores.

    Raises `UsageError` for another name, and for `dali` where it is not installed.
    """
    check_choice("engine", name, EngineName)
    installed = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
    if name == "auto":
        name = "dali" if installed and device.type == "cuda" else "cpu"
    half = half and device.type == "cuda"
    threads = decode_threads or max(1, num_cores() // ranks_here())
    if name == "dali":
        if not installed:
            raise UsageError("--engine dali: NVIDIA DALI is not installed here; use --engine cpu")
        from bintally.loading.dali_engine import DaliEngine

        return DaliEngine(preprocessing, device, batch_size, threads, half=half)
    from bintally.loading.cpu_engine import CpuEngine

    return CpuEngine(preprocessing, device, threads, half=half)
