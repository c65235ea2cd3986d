"""Training under test: each contestant takes the optimiser's steps of one shuffled epoch.

The same network, batch, precision and optimiser for all; what differs is where the photos come from
and how the loop is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.measure import Measurement, cpu_seconds, peak_memory_mib
from bintally.errors import WorkError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Workload", "ours", "timm_loop", "torchvision_loop"]

WARMUP_STEPS = 2
"""Steps before the clock starts."""


@dataclass(frozen=True)
class Workload:
    """What every contestant is given."""

    shards: str
    image_folder: Path
    """The same photos of the train split as files, a folder for each class."""
    backbone: str
    """A network of torchvision, from scratch."""
    image_size: int
    batch_size: int
    device: Literal["cpu", "cuda"]
    precision: Literal["fp32", "bf16"]
    num_workers: int


def ours(workload: Workload, part: Literal["all", "model", "loader"]) -> Measurement:
    """The loop of `fit`; `model` gives it one batch again and again, `loader` takes no steps."""
    import torch

    from bintally.counting.model import build_model
    from bintally.dataset.manifest import read_dataset
    from bintally.dataset.samples import Samples
    from bintally.device import precision_type
    from bintally.loading.engines import make_engine
    from bintally.loading.order import TrainingOrder
    from bintally.storage.opening import open_place
    from training.config import FitConfig
    from training.debugger.recorder import Recorder
    from training.debugger.rules import Records
    from training.inputs import PhotoInputs
    from training.launch.distributed import joined
    from training.loop import Callback, Loop, Step

    config = FitConfig(
        workload.shards,
        Path(),
        backbone=workload.backbone,
        weights="none",
        image_size=workload.image_size,
        batch_size=workload.batch_size,
        precision=workload.precision,
        device=workload.device,
    )
    place = open_place(workload.shards)
    dataset = read_dataset(place)
    with joined(config.device) as process:
        model, preprocessing = build_model(
            config.backbone,
            "none",
            image_size=config.image_size,
            head_width=config.head_width,
            num_classes=len(dataset.classes),
            trainable="all",
            seed=0,
        )
        precision = precision_type(config.precision, process.device)
        train = Samples(place, dataset, "train")
        inputs = PhotoInputs(
            config,
            train,
            Samples(place, dataset, "validation"),
            dataset.classes,
            make_engine(
                "auto",
                preprocessing,
                process.device,
                config.batch_size,
                half=precision != torch.float32,
            ),
            TrainingOrder(train.sizes, config.batch_size, config.seed),
            process,
            precision,
        )
        if part == "loader":
            return _count(inputs.batches(0, 0), config.batch_size, process.device)
        if part == "model":
            first = next(inputs.batches(0, 0))
            number = inputs.order.steps + 1
            inputs.batches = lambda epoch, first_step: iter([first] * number)  # type: ignore[method-assign]
        loop = Loop(
            config,
            model.to(process.device),
            inputs,
            dataset.classes,
            dataset.splits["train"].class_counts,
            process,
            precision,
        )

        class Clock(Callback):
            """The debugger that is on by default, and the time."""

            def __init__(self) -> None:
                self.cpu = cpu_seconds()
                self.steps = 0
                self.recorder = Recorder(model, Records(), time.monotonic())

            def before_step(self, number: int) -> None:
                if part == "all":
                    self.recorder.before_step(number)

            def after_backward(self) -> None:
                if part == "all":
                    self.recorder.after_backward(model)

            def after_step(self, step: Step) -> None:
                if part == "all":
                    self.recorder.after_step(step)
                self.steps += 1
                if self.steps == WARMUP_STEPS:
                    _wait(process.device)
                    self.began = time.perf_counter()

        clock = Clock()
        loop.train_epoch(clock)
        _wait(process.device)
        return _measured(clock.steps, workload.batch_size, clock.began, clock.cpu)


def torchvision_loop(workload: Workload) -> Measurement:
    """As in torchvision's references/classification: ImageFolder, PIL, a DataLoader, SGD."""
    import torch
    from torchvision import models
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    size = workload.image_size
    transform = v2.Compose(
        [
            v2.Resize((size, size), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            v2.ToPureTensor(),
        ]
    )
    dataset = ImageFolder(str(workload.image_folder), transform, allow_empty=True)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=workload.batch_size,
        shuffle=True,
        num_workers=workload.num_workers,
        pin_memory=workload.device == "cuda",
        drop_last=True,
    )
    model = models.get_model(workload.backbone, num_classes=len(dataset.classes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    return _plain(workload, model, optimizer, loader, torch.nn.CrossEntropyLoss())


def timm_loop(workload: Workload) -> Measurement:
    """As in timm's train.py: its dataset, loader, network and optimiser, channels_last."""
    import timm
    import torch
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2

    dataset = create_dataset("", root=str(workload.image_folder), split="train", is_training=True)
    size = workload.image_size
    loader = create_loader(
        dataset,
        input_size=(3, size, size),
        batch_size=workload.batch_size,
        is_training=True,
        # The whole photo, as the others: no random crop.
        scale=(1.0, 1.0),
        ratio=(1.0, 1.0),
        interpolation="bilinear",
        num_workers=workload.num_workers,
        use_prefetcher=workload.device == "cuda",
        device=torch.device(workload.device),
    )
    model = timm.create_model(workload.backbone, num_classes=6)
    model = model.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=0.001)
    return _plain(workload, model, optimizer, loader, torch.nn.CrossEntropyLoss(), last=True)


def _plain(
    workload: Workload,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Iterable[Any],
    criterion: Callable[..., torch.Tensor],
    last: bool = False,
) -> Measurement:
    """The loop that the reference scripts share."""
    import torch

    device = torch.device(workload.device)
    model.to(device).train()
    cpu, steps, began = cpu_seconds(), 0, 0.0
    for images, labels in loader:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        if last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(workload.device, torch.bfloat16, enabled=workload.precision == "bf16"):
            loss = criterion(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        if steps == WARMUP_STEPS:
            _wait(device)
            began = time.perf_counter()
    _wait(device)
    return _measured(steps, workload.batch_size, began, cpu)


def _count(batches: Iterable[Any], batch_size: int, device: torch.device) -> Measurement:
    cpu, began = cpu_seconds(), 0.0
    steps = 0
    for steps, _ in enumerate(batches, 1):
        if steps == WARMUP_STEPS:
            began = time.perf_counter()
    _wait(device)
    return _measured(steps, batch_size, began, cpu)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()


def _measured(steps: int, batch_size: int, began: float, cpu: float) -> Measurement:
    seconds = time.perf_counter() - began
    if steps <= WARMUP_STEPS:
        raise WorkError(
            f"an epoch of {steps} steps: more than {WARMUP_STEPS} are needed to measure"
        )
    return {
        "photos_per_s": (steps - WARMUP_STEPS) * batch_size / seconds,
        "cpu_s_per_1000": 1000 * (cpu_seconds() - cpu) / (steps * batch_size),
        "peak_memory_mib": peak_memory_mib(),
    }
