"""Steps a second of models alone, on a batch that is there already, in several ways."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.context import TINY, Context, failure
from bintally.counting.model import build_model
from training.config import FitConfig
from training.losses import make_loss
from training.optimization import make_optimizer

__all__ = ["main"]

LITE0 = {"backbone": "timm:tf_efficientnet_lite0"}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"compile": True},
    LITE0,
    {"batch": 64},
    {**LITE0, "compile": True},
    {"channels_first": True},
    {"cudnn_benchmark": True},
    {"input": "float32"},
]
COMPILE_S = 60.0
"""What the first step of a compiled model takes at most, and then some."""


def main(context: Context) -> None:
    """Keeps `model.json` after each; ResNet-50, batch 256, bf16, if nothing else is said."""
    results: list[dict[str, Any]] = []
    variants = VARIANTS[:3] if context.smallest else VARIANTS
    for variant in variants:
        if context.left < (COMPILE_S if variant.get("compile") else 8):
            continue
        try:
            report: dict[str, Any] = measured(context, **variant)
        except Exception as error:
            report = failure(error)
        results.append({"changed": variant, **report})
        context.keep("model", results)
        context.say(results[-1])


def measured(
    context: Context,
    *,
    backbone: str = "resnet50",
    batch: int = 256,
    input: str = "float16",  # noqa: A002
    compile: bool = False,  # noqa: A002
    channels_first: bool = False,
    cudnn_benchmark: bool = False,
) -> dict[str, float]:
    """A variant's steps."""
    device, steps, size = context.device, 30, 224
    if context.smallest:
        backbone, batch, steps, size = TINY, 2, 2, 64
    torch.backends.cudnn.benchmark = cudnn_benchmark
    model, _ = build_model(
        backbone, "none", image_size=size, head_width=128, num_classes=6, trainable="all", seed=0
    )
    model.to(device).train()
    images = torch.randn(batch, size, size, 3, device=device, dtype=getattr(torch, input))
    images = images.permute(0, 3, 1, 2)
    if channels_first:
        model.to(memory_format=torch.contiguous_format)
        images = images.contiguous()
    labels = torch.randint(0, 6, (batch,), device=device)
    config = FitConfig("", Path())
    optimizer = make_optimizer(config, model.head, model.backbone)
    loss = make_loss(config, range(6), {str(i): 1 for i in range(6)}, device)
    # Without a GPU, Inductor's C++ takes a minute to compile; `compiled` rehearses that.
    backend = "eager" if context.smallest else "inductor"
    forward = torch.compile(model, backend=backend) if compile else model

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            logits = forward(images).float()
        (loss(logits, labels) / batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    began = time.perf_counter()
    step()
    context.wait()
    first = time.perf_counter() - began
    for _ in range(4):
        step()
    context.wait()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    launched = time.perf_counter() - began
    context.wait()
    seconds = time.perf_counter() - began
    report = {
        "photos_per_s": round(steps * batch / seconds),
        "ms_a_step": round(1000 * seconds / steps, 1),
        "ms_to_launch": round(1000 * launched / steps, 1),
        "first_step_s": round(first, 1),
    }
    if context.on_gpu:
        report["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
        torch.cuda.reset_peak_memory_stats()
    return report


if __name__ == "__main__":
    main(Context.read())
