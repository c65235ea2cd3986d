"""What watches a run: records for the rules, and a profile."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bintally.dataset.labels import Classes
from bintally.storage.place import TEMPORARY_SUFFIX
from bintally.terminal.progress import say
from training.config import FitConfig
from training.debugger.recorder import MachineSampler, Recorder
from training.debugger.rules import Finding, Records, apply_rules
from training.launch.distributed import Process
from training.loop import Step
from training.report.results import TRACE

if TYPE_CHECKING:
    from training.evaluate import Evaluation

__all__ = ["Debugger"]

APPLY_EVERY_S = 1.0
"""A head's epoch on kept features lasts 50 ms: rules after each of them would cost 2% of it."""
PROFILED = (1, 1, 4)
"""Steps of the run that are left out, that warm the profiler up, and that it records."""


class Debugger:
    """Watches a run on its first process. A context manager."""

    def __init__(
        self,
        config: FitConfig,
        model: nn.Module,
        class_counts: Mapping[str, int],
        process: Process,
        began: float,
    ) -> None:
        """`began` is the run's start on the monotonic clock."""
        self.findings: list[Finding] = []
        self._config, self._process = config, process
        self._model = model
        self._records = Records(class_counts=class_counts)
        self._due = 0.0
        # A compiled model would be cut into pieces by hooks.
        self._recorder = Recorder(model, self._records, began, hooks=not config.compile)
        self._profiler: Any = None
        self._open = ExitStack()

    def __enter__(self) -> Debugger:
        self._open.callback(self._recorder.close)
        self._open.enter_context(MachineSampler(self._records, self._process.device))
        if self._config.profile:
            wait, warmup, active = PROFILED
            self._profiler = self._open.enter_context(
                torch.profiler.profile(
                    schedule=torch.profiler.schedule(
                        wait=wait, warmup=warmup, active=active, repeat=1
                    ),
                    on_trace_ready=lambda profile: _write_trace(profile, self._config.run / TRACE),
                    record_shapes=True,
                )
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def before_step(self, number: int) -> None:
        self._recorder.before_step(number)

    def after_backward(self) -> None:
        self._recorder.after_backward(self._model)

    def after_step(self, step: Step) -> None:
        """See `Recorder`; the profiler counts steps."""
        self._recorder.after_step(step)
        if self._profiler is not None:
            self._profiler.step()

    def end_epoch(
        self,
        history: list[dict[str, Any]],
        evaluation: Evaluation | None,
        classes: Classes,
        *,
        last: bool,
    ) -> str:
        """Applies the rules; the name of one that the run is to stop on, or nothing.

        Where epochs are short, not after each; but always after the `last` one.
        """
        records = self._records
        if not (time.monotonic() >= self._due or last or self._config.stop_on):
            return ""
        history[-1]["machine"] = _machine(records)
        self._due = time.monotonic() + APPLY_EVERY_S
        self._recorder.collect()
        records.history = history
        if evaluation is not None:
            from training.metrics import confusion_matrix

            answers = evaluation.predicted(classes)
            matrix = confusion_matrix(evaluation.labels, answers, len(classes))
            records.confusion = matrix.tolist()
        before = {finding.rule for finding in self.findings if finding.found}
        self.findings = apply_rules(records)
        for finding in self.findings:
            if finding.found and finding.rule not in before:
                say(f"{finding.rule}: {finding.evidence}; what helps: {finding.remedy}")
        stop = [f.rule for f in self.findings if f.found and f.rule in self._config.stop_on]
        return stop[0] if stop else ""

    def rules_json(self) -> bytes:
        """The file of findings."""
        findings = [finding.to_dict() for finding in self.findings]
        return (json.dumps(findings, indent=1) + "\n").encode()


def _machine(records: Records) -> dict[str, float]:
    """What the machine was like so far, in a few numbers for the history."""
    means = {
        "cpu_percent": records.cpu,
        "gpu_percent": records.gpu,
        "gpu_memory_percent": records.gpu_memory,
    }
    machine = {name: sum(seen) / len(seen) for name, seen in means.items() if seen}
    if records.memory_bytes:
        machine["memory_mib"] = records.memory_bytes[-1] / 2**20
    return machine


def _write_trace(profile: Any, file: Path) -> None:
    aside = file.with_name(file.name + TEMPORARY_SUFFIX)
    profile.export_chrome_trace(str(aside))
    aside.replace(file)
