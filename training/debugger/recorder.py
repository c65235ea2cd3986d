"""What a run records for its rules: losses, gradients, ReLUs, and the machine, second by second.

Numbers of the model stay on its device until rules look at them; a thread samples the machine. Only
the first process records.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.debugger.rules import Records
from training.loop import Step

__all__ = ["MachineSampler", "Recorder"]

EVERY = 50
"""Steps from one look at gradients and ReLUs to the next. A look costs a quarter of a step of a
head on kept features, the shortest there is. (SageMaker's debugger saves every 500 steps.)"""
SAMPLE_EVERY_S = 1.0
RECENT = 16
"""Looks at ReLUs that count: a channel may be active in the beginning and die later."""


class Recorder:
    """Records a run, by hooks in the model and calls of the loop."""

    def __init__(
        self, model: nn.Module, records: Records, began: float, *, hooks: bool = True
    ) -> None:
        """`began` is the run's start on the monotonic clock; `hooks` look at ReLUs."""
        self.records = records
        self._began = began
        self._losses: list[Tensor] = []
        self._names: list[str] = []
        self._gradients: list[Tensor] = []
        self._looking = False
        self._relus: dict[str, list[Tensor]] = {}
        self._hooks = [
            module.register_forward_hook(self._hook(name))
            for name, module in model.named_modules()
            if hooks and isinstance(module, nn.ReLU | nn.ReLU6)
        ]

    def before_step(self, number: int) -> None:
        """Decides whether this step is looked at; the number is the run's, from 0."""
        if not self.records.step_seconds and not self._losses:
            self.records.initialisation_s = time.monotonic() - self._began
        self._looking = number % EVERY == 0

    def after_backward(self, model: nn.Module) -> None:
        """Looks at the gradients, before the optimiser takes them."""
        if not self._looking:
            return
        named = [(n, p.grad) for n, p in model.named_parameters() if p.grad is not None]
        self._names = [name for name, _ in named]
        gradients = [gradient for _, gradient in named if gradient is not None]
        sizes = torch.tensor([g.numel() for g in gradients], dtype=torch.float32)
        sums = torch.stack(torch._foreach_norm(gradients, 1))
        self._gradients.append(sums / sizes.to(sums.device, non_blocking=True))
        self._looking = False

    def after_step(self, step: Step) -> None:
        """Keeps a step's loss and time."""
        self._losses.append(step.loss)
        self.records.step_seconds.append(step.seconds)

    def collect(self) -> None:
        """Brings what was recorded from the device; the one time that it is waited for."""
        if self._losses:
            self.records.losses += torch.stack(self._losses).tolist()
            self._losses.clear()
        for values in self._gradients:
            if len(values) == len(self._names):
                self.records.gradients.append(dict(zip(self._names, values.tolist(), strict=True)))
        self._gradients.clear()
        self.records.activity = {
            name: torch.stack(seen).mean(0).tolist() for name, seen in self._relus.items()
        }

    def close(self) -> None:
        """Takes the hooks out of the model."""
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str) -> Any:
        def look(module: nn.Module, arguments: Any, output: Tensor) -> None:
            if not (self._looking and torch.is_grad_enabled() and output.requires_grad):
                return
            active = (output.detach() > 0).float()
            # (batch, channels, …): how much of the batch, and of the picture, each channel is on.
            seen = self._relus.setdefault(name, [])
            shares = active.mean([d for d in range(active.ndim) if d != 1])
            if seen and seen[0].shape != shares.shape:
                return  # One module used in several places; the first one stands for it.
            seen.append(shares)
            del seen[:-RECENT]

        return look


class MachineSampler:
    """CPU, memory and GPU of this machine, sampled by a thread for the time of a context."""

    def __init__(self, records: Records, device: torch.device) -> None:
        self._records, self._device = records, device
        self._can_ask_gpu = device.type == "cuda"
        self._end = threading.Event()
        self._before = _cpu_times()

    def __enter__(self) -> MachineSampler:
        threading.Thread(target=self._run, name="machine sampler", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()

    def _run(self) -> None:
        while not self._end.wait(SAMPLE_EVERY_S):
            self.sample()

    def sample(self) -> None:
        """Takes one sample now."""
        records, now = self._records, _cpu_times()
        busy, total = (b - a for a, b in zip(self._before, now, strict=True))
        self._before = now
        records.cpu.append(100 * busy / total if total > 0 else 0.0)
        records.memory_bytes.append(_memory_bytes())
        # What a GPU does before the first step is initialisation, which has a rule of its own.
        if self._device.type == "cuda" and records.step_seconds:
            # This process's: others may share the GPU.
            whole = torch.cuda.get_device_properties(self._device).total_memory
            records.gpu_memory.append(100 * torch.cuda.memory_reserved(self._device) / whole)
            self._ask_gpu()

    def _ask_gpu(self) -> None:
        """Asks NVML how busy the GPU is, if it says so."""
        if self._can_ask_gpu:
            try:
                self._records.gpu.append(float(torch.cuda.utilization(self._device)))
            except Exception:
                # No nvidia-ml-py, no driver, no permission, a slice of a GPU: NVMLError is a class
                # that may not be there. Whatever it is, it stays so.
                self._can_ask_gpu = False


def _cpu_times() -> tuple[float, float]:
    """Seconds in which the machine's cores were busy, and in all; zeros where it does not tell."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return 0.0, 0.0
    times = [int(word) for word in words]
    # user nice system idle iowait irq softirq steal
    return float(sum(times) - times[3] - times[4]), float(sum(times))


def _memory_bytes() -> int:
    """What this process has in memory."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
