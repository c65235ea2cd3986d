"""A run of `fit` on one process: what is to be resumed, the epochs, and the run's folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bintally.counting.checkpoint import Checkpoint
from bintally.counting.decision import Decision
from bintally.counting.model import CountNet, build_model
from bintally.dataset.manifest import Dataset
from bintally.dataset.samples import Samples
from bintally.device import precision_type
from bintally.errors import UsageError, WorkError
from bintally.loading.engine import Engine
from bintally.loading.engines import make_engine
from bintally.loading.preprocessing import Preprocessing
from bintally.storage.opening import open_place
from bintally.terminal.progress import say
from training.config import FitConfig
from training.debugger.watch import Debugger
from training.features import BATCH_SIZE
from training.inputs import Inputs, make_inputs, make_order
from training.launch.distributed import Process
from training.loop import Callback, Loop, Position, Step
from training.metrics import most_frequent_count
from training.report.history import epoch_line, history_bytes, read_history
from training.report.results import (
    BEST,
    LAST,
    METRICS,
    REPORT,
    RESULTS,
    RULES_FILE,
    TRACKING,
    write_results,
)
from training.report.trackers import Tracking
from training.survival.checkpoint_writer import CheckpointWriter
from training.survival.interruption import Diverged, LossDiverged, Survival, Terminated
from training.survival.resumption import describe_last, find_earlier, read_together

__all__ = ["OnEpoch", "Trainer"]

OnEpoch = Callable[[dict[str, Any]], bool | None]
"""Is given an epoch's line of `metrics.jsonl`, on every process; True, on all of them, pauses the
run: all is saved, and the same with `resume` goes on."""


class Trainer(Callback):
    """A run on this process: what is to be resumed, the loop, and the folder."""

    def __init__(
        self,
        config: FitConfig,
        dataset: Dataset,
        train: Samples,
        validation: Samples,
        process: Process,
        survival: Survival,
        on_epoch: OnEpoch | None,
    ) -> None:
        self.dataset, self.process = dataset, process
        self.train, self.validation = train, validation
        self.survival, self.on_epoch = survival, on_epoch
        self.began = time.monotonic()
        self.paused = False
        mirror = None if config.mirror is None else open_place(config.mirror)
        self.writer = CheckpointWriter(open_place(config.run), mirror)
        earlier = find_earlier(config, dataset.sha256, process)
        self.order = make_order(config, earlier, train, dataset.classes, process)
        self.config = replace(config, lanes=self.order.lanes, window=self.order.window)
        self.model, self.preprocessing = self._build(earlier)
        self.precision = precision_type(config.precision, process.device)
        of_features = BATCH_SIZE if config.uses_features else 0
        self.engine: Engine = make_engine(
            config.engine,
            self.preprocessing,
            process.device,
            max(self.order.largest_part, config.eval_batch_size, of_features),
            half=self.precision != torch.float32,
            decode_threads=config.decode_threads,
        )
        self._announce()
        self.tracking = Tracking(self.config, process)
        self.resumed = earlier is not None and (earlier.epoch, earlier.step) != (0, 0)
        self.loop = self._make_loop(earlier)
        self.debugger: Debugger | None = None
        if process.is_first:
            self.debugger = Debugger(config, self.model, train.class_counts, process, self.began)

    def execute(self) -> bool:
        """Trains what is left to train, then evaluates the best checkpoint and reports.

        False where SIGTERM interrupted it, or it was paused.
        """
        # Trackers wait for their servers last, when all is saved.
        with self.tracking:
            return self._execute()

    def _execute(self) -> bool:
        try:
            self.tracking.log(self.loop.position.history)
            with self.debugger or nullcontext():
                while not (self.loop.ended or self.paused):
                    self._train_epoch()
            if not self.loop.ended:
                return False
            self._finish()
            return True
        except Terminated:
            self._interrupted()
            return False
        except Diverged as error:
            raise self._explained(error) from None
        except BaseException:
            # What was submitted is worth keeping, whatever went wrong.
            with suppress(WorkError):
                self.writer.flush()
            raise

    def _build(self, earlier: Checkpoint | None) -> tuple[CountNet, Preprocessing]:
        config = self.config
        model, preprocessing = build_model(
            config.backbone,
            config.weights if earlier is None else "none",
            image_size=config.image_size,
            head_width=config.head_width,
            num_classes=len(self.dataset.classes),
            trainable=config.trainable,
            dropout=config.dropout,
            # Every process begins with the same weights; DDP would send the first one's otherwise.
            seed=config.seed,
        )
        if earlier is not None:
            model.load_state_dict(earlier.model)
            preprocessing = Preprocessing.from_dict(earlier.preprocessing)
        model.to(self.process.device)
        if config.sync_batchnorm:
            if self.process.device.type != "cuda":
                raise UsageError("--sync-batchnorm: PyTorch has it on GPUs only")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return model, preprocessing

    def _announce(self) -> None:
        if not self.process.is_first:
            return
        config = self.config
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        say(
            f"{config.backbone}, weights {config.weights}, {trained:,} parameters trained; "
            f"{len(self.train):,} photos to train on, {len(self.validation):,} to validate on; "
            f"{self.process.world_size} × {self.process.device.type}, "
            f"{type(self.engine).__name__}"
        )
        if config.weights == "none" and config.trainable == "head":
            say("warning: a frozen backbone without weights gives random features")

    def _make_loop(self, earlier: Checkpoint | None) -> Loop:
        loop = Loop(
            self.config,
            self.model,
            self._inputs(),
            self.dataset.classes,
            self.train.class_counts,
            self.process,
            self.precision,
        )
        if earlier is None:
            return loop
        try:
            loop.optimizer.load_state_dict(earlier.optimizer)
        except ValueError as error:
            raise UsageError(
                f"--run {self.config.run}: was begun by an older version; name another folder"
            ) from error
        if loop.average is not None and earlier.ema is not None:
            loop.average.load(earlier.ema)
        history = read_history(self.config.run / METRICS, earlier.epoch)
        loop.position = Position(
            earlier.epoch, earlier.step, earlier.sums, earlier.best, self.process.share(history)
        )
        loop.stopped = earlier.stopped
        loop.decision = Decision.from_dict(earlier.decision)
        if self.process.is_first and self.resumed:
            say(f"resuming after epoch {earlier.epoch}, step {earlier.step}")
        return loop

    def _inputs(self) -> Inputs:
        asked = time.monotonic()
        inputs = make_inputs(
            self.config,
            self.model,
            self.preprocessing,
            self.train,
            self.validation,
            self.dataset.classes,
            self.engine,
            self.order,
            self.process,
            self.precision,
            self.survival.pause,
        )
        # Features are work, and no part of the start that a rule looks at.
        self.began += time.monotonic() - asked
        return inputs

    def _train_epoch(self) -> None:
        """An epoch, its validation, and the checkpoints after it."""
        config, loop = self.config, self.loop
        line = loop.train_epoch(self)
        if self.resumed:
            line["resumed"], self.resumed = True, False
        self.survival.after_steps()
        better = loop.end_epoch(line, self.survival.pause)
        reason = None
        if self.debugger is not None:
            rule = self.debugger.end_epoch(
                loop.position.history, loop.evaluation, self.dataset.classes, last=loop.ended
            )
            reason = f"the rule {rule} found an issue" if rule else ""
            print(epoch_line(line, config.epochs), flush=True)
        self.tracking.log(loop.position.history)
        loop.stopped = loop.stopped or self.process.share(reason)
        # The line comes before the checkpoint: a resumed run drops the lines it will write again,
        # and could not make up one that is missing.
        self._write(METRICS, RULES_FILE, *([BEST, LAST] if better else [LAST]))
        if self.on_epoch is not None:
            self.writer.flush()
            self.paused = bool(self.on_epoch(line))

    def before_step(self, number: int) -> None:
        if self.debugger is not None:
            self.debugger.before_step(number)

    def after_backward(self) -> None:
        if self.debugger is not None:
            self.debugger.after_backward()

    def after_step(self, step: Step) -> None:
        """Saves when it is time. Raises `Terminated` or `Diverged`."""
        position, every = self.loop.position, self.config.checkpoint_every_steps
        if self.debugger is not None:
            self.debugger.after_step(step)
        due = self.survival.after_step(step)
        if due or (every and position.step % every == 0 and position.step < self.loop.steps):
            self._write(LAST)

    def _finish(self) -> None:
        """Evaluates the best checkpoint on the validation split, and writes the report."""
        config = self.config
        self.writer.flush()
        self.process.wait()
        checkpoint, sha256 = read_together(config, BEST, self.process)
        if self.process.is_first:
            if self.loop.stopped:
                print(f"stopped after epoch {self.loop.position.epoch}: {self.loop.stopped}")
            print(f"best: epoch {checkpoint.epoch}, {config.run / BEST}")
        model, _ = checkpoint.build()
        evaluation = self.loop.inputs.validate(model.to(self.process.device), self.survival.pause)

        def write() -> None:
            if evaluation is not None:
                baseline = most_frequent_count(self.train.class_counts)
                write_results(
                    config.run,
                    config.run,
                    evaluation,
                    self.validation,
                    checkpoint,
                    sha256,
                    baseline,
                )
                self.writer.submit({name: (config.run / name).read_bytes() for name in RESULTS})
                self.writer.flush()
                print(f"report: {config.run / REPORT}")
            self.writer.finish()

        self.process.let_first(write)

    def _interrupted(self) -> None:
        """Saves where the run was when it was asked to end."""
        if self.loop.position.step:
            self._write(LAST)

        def finish() -> None:
            self.writer.flush()
            say(f"asked to end: all is saved in {self.config.run}, --resume goes on from there")
            self.writer.finish()

        self.process.let_first(finish)

    def _explained(self, error: Diverged) -> LossDiverged:
        """What is to be known of a loss that went astray."""
        loop, config = self.loop, self.config
        self.writer.flush()
        epoch, step = divmod(error.number, loop.steps)
        batch = self.order.whole_step(epoch, step)
        reason = error.explain([self.train.id(i) for i in batch.tolist()])
        return LossDiverged(
            f"epoch {epoch + 1}, step {step + 1}: {reason}; {describe_last(config.run)}; "
            f"try a lower --lr than {config.lr}, or --precision fp32"
        )

    def _write(self, *names: str) -> None:
        """Writes files of the run, in the background; all processes call it together."""
        loop, position = self.loop, self.loop.position
        if position.step:
            loop.settle()
        trained = [p.detach() for p in self.model.parameters() if p.requires_grad]
        # Before the loss tells, the weights do.
        if not torch.stack(torch._foreach_norm(trained)).isfinite().all():
            self.survival.after_steps()
            raise Diverged(position.epoch * loop.steps + position.step - 1, float("nan"))
        self.survival.saved()
        if self.debugger is None:
            return
        checkpoint = Checkpoint(
            model=self.model.state_dict(),
            optimizer=loop.optimizer.state_dict(),
            schedule=vars(loop.schedule),
            ema=loop.average.values if loop.average else None,
            scaler=None,
            random={"seed": self.config.seed},
            epoch=position.epoch,
            step=position.step,
            sums=position.sums,
            best=position.best,
            config=self.config.to_dict(),
            dataset=self.dataset.sha256,
            classes=self.dataset.classes,
            preprocessing=self.preprocessing.to_dict(),
            stopped=loop.stopped,
            decision=loop.decision.to_dict(),
        )
        files: dict[str, Checkpoint | bytes] = {
            METRICS: history_bytes(position.history),
            RULES_FILE: self.debugger.rules_json(),
            BEST: checkpoint.for_counting(),
            LAST: checkpoint,
        }
        noted = {TRACKING: self.tracking.to_json()} if self.config.track else {}
        self.writer.submit(noted | {name: files[name] for name in names})
