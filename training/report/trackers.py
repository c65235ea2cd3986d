"""Trackers: tools in which people watch runs, each given an epoch's numbers when it is over.

A run's history is in its own files, and a tracker may lack some of it (the run was killed, or the
tool was away) or be ahead of it (the run goes on from before an epoch that is told already). So
each start looks what the tool has of this very run, and gives it the rest: every step once.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from bintally.errors import UsageError, WorkError
from bintally.terminal.progress import say
from training.config import FitConfig
from training.launch.distributed import Process
from training.report.results import EVENTS, TRACKING

__all__ = ["Tracking", "check_installed", "read_id"]

PROJECT = "bintally"
"""What runs are filed under where the tool's own settings name nothing else."""


class Tracker(Protocol):
    """One of the tools, with this run open in it."""

    last_step: int
    """The last step that it has; -1 where it has none."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes what was measured after a step of the run; steps grow."""

    def close(self, *, failed: bool) -> None:
        """The run has ended, or was interrupted."""


class TensorBoard:
    """Event files in the run's folder.

    Those of a start hold the curve from its beginning, and say that what earlier ones hold is void.
    """

    def __init__(self, run: Path, run_id: str, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.last_step = -1
        self._writer = SummaryWriter(run / EVENTS, purge_step=0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, under the same id at every start.

    Its server says how far it has come. Offline there is none: then the files of a start hold the
    curve from its beginning, as `wandb sync` wants it, which replaces a run by the last files.
    """

    def __init__(self, run: Path, run_id: str, settings: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            id=run_id,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", run.name),
            dir=os.environ.get("WANDB_DIR", str(run)),
            config=dict(settings),
        )
        self.last_step = self._run.step - 1

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step, commit=True)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow:
    """A run of MLflow, found again by its tag, in the store that MLFLOW_TRACKING_URI names."""

    def __init__(self, run: Path, run_id: str, settings: Mapping[str, Any]) -> None:
        import mlflow

        self._client = client = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else client.create_experiment(name)
        found = client.search_runs([experiment], f"tags.{TAG} = '{run_id}'")
        if found:
            self._id = found[0].info.run_id
            client.update_run(self._id, status="RUNNING")
        else:
            made = client.create_run(experiment, tags={TAG: run_id}, run_name=run.name)
            self._id = made.info.run_id
            params = [mlflow.entities.Param(k, str(v)) for k, v in settings.items()]
            client.log_batch(self._id, params=params)
        # Of what is told of a step, the epoch comes last.
        told = client.get_metric_history(self._id, "epoch")
        self.last_step = max((metric.step for metric in told), default=-1)
        self._metric = mlflow.entities.Metric

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [self._metric(name, value, now_ms, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics)

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


TAG = "bintally_run"
TOOLS: dict[str, Callable[[Path, str, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


class Tracking:
    """A run's trackers, in which its first process tells. A context manager, for the run's time.

    They are told on a thread of their own: a server may be slow, or away, and training goes on.
    """

    def __init__(self, config: FitConfig, process: Process) -> None:
        """Opens the run in each tracker; all processes call this together.

        Raises `UsageError` where that cannot be.
        """
        self._process = process
        self._trackers: dict[str, Tracker] = {}
        self._lacking: dict[str, str] = {}
        self._history: Sequence[Mapping[str, Any]] = ()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trackers")
        file = config.run / TRACKING
        self.run_id = (read_id(file.read_bytes()) if file.exists() else None) or uuid.uuid4().hex
        process.let_first(lambda: self._open(config))

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Raises `WorkError`, on all processes, where a tracker lacks something in the end."""
        self._thread.shutdown(cancel_futures=True)
        if kind is None:
            self._process.let_first(self._close)
        else:
            self._close(failed=True)

    def log(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Has the trackers take what they lack of a run's `metrics.jsonl`; nobody waits for it."""
        self._history = [*history]
        if self._trackers:
            self._thread.submit(self._tell, self._history)

    def to_json(self) -> bytes:
        """The file of the run's folder by which trackers know it again."""
        return (json.dumps({KEY: self.run_id}) + "\n").encode()

    def _open(self, config: FitConfig) -> None:
        for name in config.trackers:
            try:
                self._trackers[name] = TOOLS[name](config.run, self.run_id, config.to_dict())
            except Exception as error:  # Of the tool's own kinds.
                raise UsageError(f"--track {name}: {_in_a_line(error)}") from error

    def _tell(self, history: Sequence[Mapping[str, Any]]) -> None:
        for name, tracker in self._trackers.items():
            try:
                for line in history:
                    if line["step"] > tracker.last_step:
                        tracker.log(line["step"], _scalars(line) | {"epoch": line["epoch"]})
                        tracker.last_step = line["step"]
                self._lacking.pop(name, None)
            except Exception as error:
                if name not in self._lacking:
                    say(f"warning: --track {name}: {_in_a_line(error)}; training goes on")
                self._lacking[name] = _in_a_line(error)

    def _close(self, *, failed: bool = False) -> None:
        self._tell(self._history)
        for name, tracker in self._trackers.items():
            try:
                tracker.close(failed=failed)
            except Exception as error:
                self._lacking[name] = _in_a_line(error)
        for name, why in self._lacking.items():
            if not failed:
                raise WorkError(f"all is in the run's folder, but --track {name} lacks it: {why}")


KEY = "bintally run"


def read_id(data: bytes) -> str | None:
    """The id that a run's file for trackers holds, None where it is no such file."""
    try:
        return str(json.loads(data)[KEY])
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def check_installed(trackers: Iterable[str]) -> None:
    """Raises `UsageError` where one of them is not installed here."""
    for name in trackers:
        spec = find_spec(name)
        # A mere folder of that name is not it: wandb makes one where it runs.
        if spec is None or spec.origin is None:
            raise UsageError(
                f"--track {name}: is not installed here: pip install 'bintally[{name}]'"
            )


def _scalars(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a line of `metrics.jsonl`, named like `validation/loss`."""
    found: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            found |= _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name not in ("epoch", "step", "samples", "resumed"):
            found[prefix + name] = float(value)
    return found


def _in_a_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
