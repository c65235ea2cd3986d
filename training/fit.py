"""Training: from shards to `best.pt`, on one process or on all that `torchrun` starts.

A run's folder holds `last.pt` and `best.pt`, `metrics.jsonl` with a line an epoch, and, when it is
done, `evaluation.json` and `report.html` of the best checkpoint on the validation split.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from bintally.command import UsageError
from bintally.places import delete_temporary_files, open_place
from bintally.progress import Progress, say
from sharding.dataset import Dataset, read_dataset
from training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from training.config import FitConfig, precision_type
from training.distributed import Process, joined
from training.engine import Engine, make_engine
from training.evaluate import Evaluation, evaluate
from training.history import epoch_line, read_history, write_history
from training.loader import load
from training.metrics import most_frequent_count
from training.model import CountNet, build_model
from training.optimization import Schedule, make_optimizer
from training.order import epoch_order, flips, rank_slice, step_seed, steps, training_batches
from training.preprocessing import Preprocessing
from training.results import BEST, EVALUATION, LAST, METRICS, REPORT, write_results
from training.samples import Samples

__all__ = ["fit"]


@dataclass
class _Position:
    """How far a run has come: what a checkpoint holds beside the tensors."""

    epoch: int = 0
    """Whole epochs done."""
    step: int = 0
    """Steps done of the epoch begun."""
    sums: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


def fit(config: FitConfig) -> None:
    """Trains a model as `config` says, and leaves the run's folder complete.

    Raises `UsageError` for settings that do not fit the data, the machine or the run that is
    there already, `WorkError` where the data turn out to be damaged.
    """
    config.check()
    place = open_place(config.shards)
    dataset = read_dataset(place)
    train = Samples(place, dataset, "train")
    validation = Samples(place, dataset, "validation")
    if len(train) < config.batch_size:
        raise UsageError(
            f"--batch-size {config.batch_size}: the train split has only {len(train)} samples"
        )
    with joined(config.device) as process:
        if process.world_size > config.batch_size:
            raise UsageError(
                f"--batch-size {config.batch_size}: fewer photos than the "
                f"{process.world_size} processes"
            )
        _Run(config, dataset, train, validation, process).execute()


class _Run:
    """A run on this process: model, optimiser, engine, and the position reached."""

    def __init__(
        self,
        config: FitConfig,
        dataset: Dataset,
        train: Samples,
        validation: Samples,
        process: Process,
    ) -> None:
        self.config, self.dataset, self.process = config, dataset, process
        self.train, self.validation = train, validation
        self.position = _Position()
        earlier = self._earlier()
        # Every process begins with the same head; DDP would send the first one's otherwise.
        torch.manual_seed(config.seed)
        preprocessing: Preprocessing
        self.model, preprocessing = build_model(
            config.backbone,
            config.weights if earlier is None else "none",
            image_size=config.image_size,
            head_width=config.head_width,
            num_classes=len(dataset.classes),
            trainable=config.trainable,
        )
        if earlier is not None:
            self.model.load_state_dict(earlier.model)
            preprocessing = Preprocessing.from_dict(earlier.preprocessing)
        self.preprocessing = preprocessing
        self.model.to(process.device)
        self.optimizer = make_optimizer(
            config.optimizer, self.model, lr=config.lr, weight_decay=config.weight_decay
        )
        if earlier is not None:
            self.optimizer.load_state_dict(earlier.optimizer)
        self.engine: Engine = make_engine(
            config.engine, preprocessing, process.device, config.batch_size
        )
        self.precision = precision_type(config.precision, process.device)
        self.steps = steps(len(train), config.batch_size)
        self.schedule = Schedule(
            config.lr, round(config.warmup_epochs * self.steps), config.epochs * self.steps
        )

    def execute(self) -> None:
        """Trains what is left to train, then evaluates the best checkpoint and reports."""
        config, position = self.config, self.position
        if self.process.is_first:
            delete_temporary_files(config.run)
        self._announce()
        trained: nn.Module = self.model
        if self.process.world_size > 1:
            # A frozen backbone's buffers never change, so there is nothing to send around.
            trained = DistributedDataParallel(
                self.model,
                device_ids=[self.process.device] if self.process.device.type == "cuda" else None,
                broadcast_buffers=not self.model.frozen,
            )
        while position.epoch < config.epochs:
            self._train_epoch(trained)
        self._finish()

    def _train_epoch(self, trained: nn.Module) -> None:
        config, position, process = self.config, self.position, self.process
        epoch, first_step = position.epoch, position.step
        order = epoch_order(len(self.train), config.seed, epoch)
        # Sums stay on the device: asking for them at every step would stall it.
        names = ("loss", "correct", "samples")
        saved = [position.sums.get(name, 0.0) for name in names]
        # Only the first process carries on the sums of a resumed epoch, for they are added up.
        sums = torch.tensor(saved if process.is_first else [0.0] * 3, dtype=torch.float64)
        sums = sums.to(process.device)
        batches = load(
            self.train,
            self.dataset.classes,
            self.engine,
            (
                rank_slice(batch, process.rank, process.world_size)
                for batch in training_batches(order, config.batch_size, first_step)
            ),
            lambda indices: flips(indices, config.seed, epoch),
        )
        began, waited = time.monotonic(), 0.0
        trained.train()
        done = epoch * self.steps + first_step
        with _bar(process, f"epoch {epoch + 1}/{config.epochs}", self.steps, first_step) as bar:
            for step in range(first_step, self.steps):
                asked = time.monotonic()
                batch = next(batches)
                waited += time.monotonic() - asked
                lr = self.schedule.learning_rate(done)
                loss, correct = self._step(trained, batch.images, batch.labels, lr, done)
                sums += torch.stack([loss, correct, torch.full_like(loss, len(batch.indices))])
                done += 1
                position.step = step + 1
                if bar is not None:
                    bar.update()
                every = config.checkpoint_every_steps
                if every and position.step % every == 0 and position.step < self.steps:
                    self._remember(names, sums)
                    self._write(LAST)
        next(batches, None)  # Lets the engine end its run, ready for the next.
        self._remember(names, sums)
        seconds = time.monotonic() - began
        trained_here = (self.steps - first_step) * config.batch_size
        line: dict[str, Any] = {
            "epoch": epoch + 1,
            "step": done,
            "lr": lr,
            "train": {
                "samples": int(position.sums["samples"]),
                "loss": position.sums["loss"] / position.sums["samples"],
                "accuracy": position.sums["correct"] / position.sums["samples"],
            },
            "seconds": seconds,
            "images_per_s": trained_here / seconds,
            "data_wait_share": waited / seconds,
        }
        self._end_epoch(line)

    def _step(
        self, trained: nn.Module, images: Tensor, labels: Tensor, lr: float, done: int
    ) -> tuple[Tensor, Tensor]:
        """One step of the optimiser; the sums of losses and of right answers on this process."""
        config, process = self.config, self.process
        # For dropout and the like.
        torch.manual_seed(step_seed(config.seed, done, process.rank))
        with torch.autocast(
            process.device.type, self.precision, enabled=self.precision != torch.float32
        ):
            logits = trained(images)
        losses = functional.cross_entropy(logits.float(), labels, reduction="sum")
        # DDP takes the mean over processes, whose parts of a batch may differ by a sample.
        (losses * (process.world_size / config.batch_size)).backward()  # type: ignore[no-untyped-call]
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        correct = (logits.detach().argmax(1) == labels).sum()
        return losses.detach().double(), correct.double()

    def _end_epoch(self, line: dict[str, Any]) -> None:
        """Validates, keeps what is best, and writes the position down."""
        config, position = self.config, self.position
        position.epoch, position.step, position.sums = line["epoch"], 0, {}
        metrics = self._validate()
        if metrics is not None:
            line["validation"] = metrics
        position.history.append(line)
        improved = (
            metrics is None
            or not position.best
            or metrics["accuracy"] > position.best["validation"]["accuracy"]
        )
        if improved:
            position.best = {"epoch": position.epoch, "validation": metrics}
        # The line comes before the checkpoint: a resumed run drops the lines it will write again,
        # and could not make up one that is missing.
        if self.process.is_first:
            write_history(config.run / METRICS, position.history)
            print(epoch_line(line, config.epochs), flush=True)
        if improved:
            self._write(BEST)
        self._write(LAST)

    def _validate(self) -> dict[str, Any] | None:
        if not len(self.validation):
            return None
        evaluation = self._evaluate(self.model)
        summary = evaluation.summarize(self.dataset.classes, self._baseline_count())
        return {
            name: summary[name]
            for name in ("samples", "loss", "accuracy", "rmse", "mae", "within_one")
        }

    def _finish(self) -> None:
        """Evaluates the best checkpoint on the validation split, and writes the report."""
        checkpoint, sha256 = read_checkpoint(self.config.run / BEST)
        if self.process.is_first:
            print(f"best: epoch {checkpoint.epoch}, {self.config.run / BEST}")
        if not len(self.validation):
            return
        model, _ = checkpoint.build()
        evaluation = self._evaluate(model.to(self.process.device))
        if self.process.is_first:
            write_results(
                self.config.run,
                evaluation,
                self.validation,
                checkpoint,
                sha256,
                self._baseline_count(),
            )
            print(f"report: {self.config.run / REPORT}")
        self.process.wait()

    def _evaluate(self, model: CountNet) -> Evaluation:
        """A model's answers on the validation split, the work shared by all processes."""
        return evaluate(
            model,
            self.validation,
            self.dataset.classes,
            self.engine,
            self.process,
            batch_size=self.config.batch_size,
            precision=self.precision,
        )

    def _baseline_count(self) -> int:
        return most_frequent_count(self.dataset.splits["train"].class_counts)

    def _remember(self, names: tuple[str, ...], sums: Tensor) -> None:
        values = self.process.sum(sums.clone()).tolist()
        self.position.sums = dict(zip(names, values, strict=True))

    def _write(self, name: str) -> None:
        """The first process writes a checkpoint; the others wait until it is there."""
        if self.process.is_first:
            position = self.position
            write_checkpoint(
                self.config.run / name,
                Checkpoint(
                    model=self.model.state_dict(),
                    optimizer=self.optimizer.state_dict(),
                    schedule=vars(self.schedule),
                    ema=None,
                    scaler=None,
                    random={"seed": self.config.seed},
                    epoch=position.epoch,
                    step=position.step,
                    sums=position.sums,
                    best=position.best,
                    config=self.config.to_dict(),
                    dataset=self.dataset.sha256,
                    classes=list(self.dataset.classes),
                    preprocessing=self.preprocessing.to_dict(),
                ),
            )
        self.process.wait()

    def _earlier(self) -> Checkpoint | None:
        """What is to be resumed, or None; clears away what an abandoned run left."""
        config, run = self.config, self.config.run
        earlier: Checkpoint | None = None
        if (run / LAST).exists():
            earlier, _ = read_checkpoint(run / LAST)
            finished = earlier.epoch >= earlier.config["epochs"]
            if not config.resume and finished:
                raise UsageError(
                    f"--run {run}: holds a finished run; name another folder, or remove this one"
                )
        if earlier is None or not config.resume:
            if earlier is not None and self.process.is_first:
                say(f"{run}: starting over an unfinished run (--resume would continue it)")
            # All have looked before the first one removes anything.
            self.process.wait()
            if self.process.is_first:
                for name in (LAST, BEST, METRICS, EVALUATION, REPORT):
                    (run / name).unlink(missing_ok=True)
            self.process.wait()
            return None
        if earlier.dataset != self.dataset.sha256:
            raise UsageError(f"--resume: {run} was trained on another dataset than {config.shards}")
        if differences := config.differences(earlier.config):
            raise UsageError(
                f"--resume: {run} was begun with other settings: {'; '.join(differences)}; "
                "resume with the same, or name another --run"
            )
        self.position = _Position(
            earlier.epoch,
            earlier.step,
            earlier.sums,
            earlier.best,
            read_history(run / METRICS, earlier.epoch),
        )
        return earlier

    def _announce(self) -> None:
        if not self.process.is_first:
            return
        config, position = self.config, self.position
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        say(
            f"{config.backbone}, weights {config.weights}, {trained:,} parameters trained; "
            f"{len(self.train):,} photos to train on, {len(self.validation):,} to validate on; "
            f"{self.process.world_size} × {self.process.device.type}, "
            f"{type(self.engine).__name__}"
        )
        if config.weights == "none" and config.trainable == "head":
            say("warning: a frozen backbone without weights gives random features")
        if position.epoch or position.step:
            say(f"resuming after epoch {position.epoch}, step {position.step}")


def _bar(process: Process, task: str, total: int, done: int) -> Any:
    """A progress bar on the first process, nothing on the others."""
    from contextlib import nullcontext

    if not process.is_first:
        return nullcontext()
    bar = Progress(task, total, "steps")
    bar.update(done)
    return bar
