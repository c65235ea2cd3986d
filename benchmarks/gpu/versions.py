"""What is installed, what cannot be imported, and how fast the GPU is by itself."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.context import Context, failure

__all__ = ["main"]

DISTRIBUTIONS = (
    *(
        "torch",
        "torchvision",
        "triton",
        "numpy",
        "numba",
        "pyarrow",
        "pillow",
        "timm",
        "simplejpeg",
    ),
    *("nvidia-dali-cuda130", "nvidia-nvimgcodec-cu13", "nvidia-ml-py", "ray", "pydantic"),
    *("typing-inspection", "grpcio", "grpcio-reflection", "webdataset", "optuna", "pytest"),
)
MODULES = (
    *("numba", "pyarrow", "timm", "nvidia.dali.fn", "simplejpeg", "tyro", "optuna", "tensorboardX"),
    *("ray.tune", "ray.train", "ray.serve", "webdataset", "matplotlib", "pynvml"),
    *("training.fit", "tuning.search", "serving.server"),
)


def main(context: Context) -> None:
    """Keeps `versions.json`."""
    report: dict[str, Any] = {"python": platform.python_version(), "cores": context.cores}
    report["versions"] = {name: version(name) for name in DISTRIBUTIONS}
    report["cannot be imported"] = {}
    for name in MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:
            report["cannot be imported"] |= {name: failure(error)["failed"]}
        context.keep("versions", report)
    if context.on_gpu:
        report["gpu"] = torch.cuda.get_device_name(context.device)
        report["smi"] = subprocess.run(["nvidia-smi"], capture_output=True, text=True).stdout
        report["speed"] = speed(context)
    context.keep("versions", report)
    context.say(report)


def version(name: str) -> str:
    """Of a distribution."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def speed(context: Context) -> dict[str, float]:
    """Of multiplying matrices, and of the way to the GPU."""
    device = context.device
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    host = torch.empty(64 * 2**20, dtype=torch.uint8)
    pinned = torch.empty(64 * 2**20, dtype=torch.uint8, pin_memory=True)

    def timed(call: Callable[[], object], number: int) -> float:
        call()
        context.wait()
        began = time.perf_counter()
        for _ in range(number):
            call()
        context.wait()
        return (time.perf_counter() - began) / number

    def upload(memory: torch.Tensor) -> float:
        seconds = timed(lambda: memory.to(device, non_blocking=True), 5)
        return round(memory.numel() / seconds / 1e9, 1)

    return {
        "bf16_tflops": round(2 * 8192**3 / timed(lambda: a @ a, 10) / 1e12),
        "pageable_gb_per_s": upload(host),
        "pinned_gb_per_s": upload(pinned),
        "memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1),
    }


if __name__ == "__main__":
    main(Context.read())
