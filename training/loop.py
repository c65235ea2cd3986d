"""The loop: an epoch's steps of the optimiser, whatever the input, however many processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from bintally.counting.decision import Decision
from bintally.counting.model import CountNet
from bintally.dataset.labels import Classes
from bintally.loading.batches import Batch
from bintally.loading.order import step_seed
from bintally.terminal.progress import Progress
from training.config import FitConfig
from training.debugger.input_wait import Waiting
from training.evaluate import Evaluation
from training.inputs import Inputs
from training.launch.distributed import Process
from training.losses import make_loss
from training.metrics import is_better, most_frequent_count
from training.optimization import Average, Schedule, make_optimizer

__all__ = ["Callback", "Loop", "Position", "Step"]

SUMS = ("loss", "correct", "samples")
STATISTICS = ("running_mean", "running_var")
"""What networks call the statistics that they gather in training and use after it."""
VALIDATED = (
    *("samples", "left_out", "loss", "accuracy", "rmse", "mae", "within_one"),
    *("decision", "argmax", "ece", "ece_uncalibrated"),
)


OWN_BUFFERS: dict[str, Any] = {"forward_sync_buffers": False}
"""Has DDP leave buffers alone, which it would send around before each forward pass."""
if not OWN_BUFFERS.keys() <= signature(DistributedDataParallel).parameters.keys():
    OWN_BUFFERS = {"broadcast_buffers": False}  # As older versions of PyTorch call it.


@dataclass
class Position:
    """How far a run has come: what a checkpoint holds beside the tensors."""

    epoch: int = 0
    """Whole epochs done."""
    step: int = 0
    """Steps done of the epoch begun."""
    sums: dict[str, float] = field(default_factory=dict)
    """Of the epoch begun, over its steps done."""
    best: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    """A step that was done, for those who watch."""

    number: int
    """Of the run, from 0."""
    loss: Tensor
    """() float64, on the device: the mean loss of this process's samples."""
    seconds: float
    """The wait for its input included."""


class Callback:
    """What happens beside the steps: nothing, unless it is said otherwise."""

    def before_step(self, number: int) -> None:
        """A step of the run, counted from 0, is about to begin."""

    def after_backward(self) -> None:
        """The step's gradients are there, and the optimiser has not taken them yet."""

    def after_step(self, step: Step) -> None:
        """The position includes the step; raising ends the run."""


class Loop:
    """A model in training on this process: optimiser, schedule, average, and the position."""

    def __init__(
        self,
        config: FitConfig,
        model: CountNet,
        inputs: Inputs,
        classes: Classes,
        class_counts: Mapping[str, int],
        process: Process,
        precision: torch.dtype,
    ) -> None:
        self.config, self.model, self.inputs = config, model, inputs
        self.process, self.precision = process, precision
        self.position = Position()
        self.stopped = ""
        """Why the run ends before its last epoch, if it does."""
        self.steps = inputs.order.steps
        self.schedule = Schedule(
            config.lr, round(config.warmup_epochs * self.steps), config.epochs * self.steps
        )
        only_head = config.trainable == "head"
        self.optimizer = make_optimizer(config, model.head, None if only_head else model.backbone)
        self.average = Average(model, config.ema, only_head) if config.ema else None
        self.evaluation: Evaluation | None = None
        """The last validation."""
        self.decision = Decision("argmax" if config.decide == "auto" else config.decide)
        """Of the last validation, if there was one."""
        self._statistics = [
            buffer
            for name, buffer in model.named_buffers()
            if name.rpartition(".")[2] in STATISTICS
        ]
        self._classes = classes
        self._baseline_count = most_frequent_count(class_counts)
        self._loss = make_loss(config, classes, class_counts, process.device)
        self._trained: nn.Module | None = None
        self._forward: Callable[[Tensor], Tensor]
        """What is trained, compiled where that was asked for."""
        self._sums = torch.zeros(len(SUMS), dtype=torch.float64, device=process.device)

    @property
    def trained(self) -> nn.Module:
        """What is trained in this epoch, as the processes share it."""
        frozen = self.config.trainable == "head" or self.position.epoch < self.config.freeze_epochs
        if self._trained is None or frozen != self.model.frozen:
            self.model.freeze(frozen)
            self._trained = self.inputs.trained(self.model)
            if self.process.world_size > 1:
                cuda = self.process.device.type == "cuda"
                self._trained = DistributedDataParallel(
                    self._trained,
                    device_ids=[self.process.device] if cuda else None,
                    # BatchNorm's statistics are agreed on after each step; no other buffer changes.
                    **OWN_BUFFERS,
                    gradient_as_bucket_view=True,
                    # It cannot tell the parts of a step from steps.
                    static_graph=self.config.accumulate == 1 and not self.config.compile,
                )
            self._forward = self._trained
            if self.config.compile:
                # Around the processes' exchange, so that it goes on during the backward pass; and
                # not the model itself, which evaluation gives batches of other sizes.
                self._forward = torch.compile(self._trained)
        return self._trained

    def train_epoch(self, callback: Callback) -> dict[str, Any]:
        """Trains what is left of the epoch begun; returns its line, without validation."""
        config, position, process = self.config, self.position, self.process
        first_step = position.step
        self.model.train()
        trained = self.trained
        # Sums stay on the device: asking for them at every step would stall it. Only the first
        # process carries on those of a resumed epoch, for they are added up.
        saved = [position.sums.get(name, 0.0) if process.is_first else 0.0 for name in SUMS]
        self._sums = torch.tensor(saved, dtype=torch.float64).to(process.device)
        began = last = time.monotonic()
        waiting = Waiting(process.device)
        batches = self.inputs.batches(position.epoch, first_step)
        with self._bar(first_step) as bar:
            for step in range(first_step, self.steps):
                done = position.epoch * self.steps + step
                with waiting:
                    parts = [next(batches) for _ in range(config.accumulate)]
                callback.before_step(done)
                loss = self._step(trained, parts, done, callback)
                position.step = step + 1
                now = time.monotonic()
                callback.after_step(Step(done, loss, now - last))
                last = now
                if bar is not None:
                    bar.update()
        if first_step < self.steps:
            next(batches, None)  # Lets the engine end its run, ready for the next.
        self.settle()
        waited, seconds = waiting.seconds(), time.monotonic() - began
        images = (self.steps - first_step) * config.batch_size
        sums, done = position.sums, (position.epoch + 1) * self.steps
        return {
            "epoch": position.epoch + 1,
            "step": done,
            "lr": self.schedule.learning_rate(done - 1),
            "train": {
                "samples": int(sums["samples"]),
                "loss": sums["loss"] / sums["samples"],
                "accuracy": sums["correct"] / sums["samples"],
            },
            "seconds": seconds,
            "images_per_s": images / seconds,
            "model_images_per_s": images / max(seconds - waited, 1e-9),
            "data_wait_share": waited / seconds,
            "replaced_samples": int(
                process.sum(torch.tensor(float(self.inputs.num_replaced), device=process.device))
            ),
        }

    def settle(self) -> None:
        """Brings the sums of all processes into the position; all of them call it together."""
        values = self.process.sum(self._sums.clone()).tolist()
        self.position.sums = dict(zip(SUMS, values, strict=True))

    def end_epoch(self, line: dict[str, Any], pause: Callable[[], None] = lambda: None) -> bool:
        """Validates, and moves on to the next epoch; whether this one is the best so far.

        `line` is the epoch's, and gets the metrics. `pause` may raise, as in `evaluate`.
        """
        config, position = self.config, self.position
        with self.average.applied() if self.average else nullcontext():
            evaluation = self.inputs.validate(self.model, pause)
        if evaluation is not None:
            evaluation = evaluation.decided(config.decide, self._classes, config.best_metric)
            self.decision = evaluation.decision
            summary = evaluation.summarize(self._classes, self._baseline_count)
            line["validation"] = {name: summary[name] for name in VALIDATED}
        self.evaluation = evaluation
        position.epoch, position.step, position.sums = line["epoch"], 0, {}
        position.history.append(line)
        metric = config.best_metric
        better = (
            evaluation is None
            or not position.best
            or is_better(metric, summary[metric], position.best["validation"][metric])
        )
        if better:
            position.best = {"epoch": position.epoch, "validation": line.get("validation")}
        if config.patience and position.epoch - position.best["epoch"] >= config.patience:
            self.stopped = f"no better epoch in {config.patience}"
        return better

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to train."""
        return self.position.epoch >= self.config.epochs or bool(self.stopped)

    def _step(
        self, trained: nn.Module, parts: Sequence[Batch], done: int, callback: Callback
    ) -> Tensor:
        """One step of the optimiser; the mean loss of this process's samples."""
        config, process = self.config, self.process
        _seed(step_seed(config.seed, done, process.rank), process.device)
        loss = torch.zeros((), dtype=torch.float64, device=process.device)
        for number, batch in enumerate(parts):
            with self._unsynchronised(trained, last=number == len(parts) - 1):
                with torch.autocast(
                    process.device.type, self.precision, enabled=self.precision != torch.float32
                ):
                    logits = self._forward(batch.images).float()
                # DDP takes the mean over processes, whose parts of a batch may differ by a sample.
                objective = self._loss(logits, batch.labels)
                (objective * (process.world_size / config.batch_size)).backward()
            with torch.no_grad():
                # Of any recipe the same, so that it can be compared, also with validation's.
                losses = functional.cross_entropy(logits, batch.labels, reduction="sum").double()
                correct = (logits.argmax(1) == batch.labels).sum().double()
                self._sums += torch.stack(
                    [losses, correct, torch.full_like(losses, len(batch.indices))]
                )
                loss += losses
        callback.after_backward()
        if config.clip_grad_norm:
            nn.utils.clip_grad_norm_(trained.parameters(), config.clip_grad_norm)
        lr = self.schedule.learning_rate(done)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("scale", 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not self.model.frozen:
            # Each process has seen other photos. Agreed on after every step, as timm does after an
            # epoch, a checkpoint is what is validated, whenever it is written and by whom.
            process.average(self._statistics)
        if self.average is not None:
            self.average.update(done)
        return loss / sum(len(batch.indices) for batch in parts)

    @staticmethod
    def _unsynchronised(trained: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Between the parts of a step, processes have nothing to tell each other."""
        if last or not isinstance(trained, DistributedDataParallel):
            return nullcontext()
        return trained.no_sync()

    def _bar(self, first_step: int) -> AbstractContextManager[Progress | None]:
        """A progress bar on the first process, nothing on the others."""
        if not self.process.is_first:
            return nullcontext()
        position, config = self.position, self.config
        bar = Progress(f"epoch {position.epoch + 1}/{config.epochs}", self.steps, "steps")
        bar.update(first_step)
        return bar


def _seed(seed: int, device: torch.device) -> None:
    """Seeds what dropout and the like draw from, as `torch.manual_seed` does.

    That one also notes a traceback for every kind of device that is not there, at every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
