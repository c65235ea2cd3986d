"""The jobs of a search on a Ray cluster, by Ray Tune: where they run, and again if one is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import OutOfMemoryError
from ray.tune.search import Searcher

from bintally.errors import CommandError, WorkError
from tuning.choosing.agenda import Agenda, TrialJob
from tuning.choosing.winner import best_epoch, objective
from tuning.cluster import Resources
from tuning.results import Trial
from tuning.trial import HeadTrial, Task, job_config, train_everything

__all__ = ["JobsRun", "run_jobs"]

RETRIES = 3
"""How often a trial is begun again that failed, or whose machine was lost."""


@dataclass
class JobsRun:
    """How the jobs of a search ran."""

    time_is_up: bool = False
    """Whether trials were cut short."""
    at_once: int = 0
    """The most that ran at the same time."""
    trained: set[tuple[int, int]] = field(default_factory=set)
    """The trials and repeats."""
    seconds: float = 0.0
    """That were spent in them."""
    repeats_s: float = 0.0
    """From the first repeat to the end."""

    def overhead_s(self, took: float) -> float | None:
        """Seconds a trial beside its training, where all `took` so long; None where there was
        nothing to train. Waiting for others counts, and so does starting processes."""
        if not self.trained:
            return None
        return max(0.0, self.at_once * took - self.seconds) / len(self.trained)


def run_jobs(
    agenda: Agenda,
    task: Task,
    resources: Resources,
    folder: Path,
    *,
    heads: bool,
    seconds: float | None,
) -> JobsRun:
    """Runs all jobs of an agenda, or for so many seconds; `folder` is for what Ray Tune keeps.

    Raises `WorkError` where one fails through no fault of its settings.
    """
    trainable: Any = tune.with_parameters(HeadTrial if heads else train_everything, task=task)
    listener = _Listener(agenda, task, resources.gpus_of_a_trial)
    first = agenda.next()
    if first is None:
        return listener.ran  # All of it is known.
    searcher = _InOrder(agenda, first, lambda job: job_config(task.base, job))
    until = time.monotonic() + (seconds or float("inf"))
    tune.Tuner(
        tune.with_resources(trainable, resources.of_a_trial()),
        tune_config=tune.TuneConfig(
            num_samples=ENDLESS,
            search_alg=searcher,
            max_concurrent_trials=resources.concurrency,
            time_budget_s=seconds,
            reuse_actors=heads,
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            callbacks=[listener],
            stop=listener,
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            # What waits is held in memory, or saves itself.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    ).fit()
    if listener.fault:
        raise WorkError(listener.fault)
    if not agenda.is_over:
        if time.monotonic() < until:
            # Ray Tune takes Ctrl-C for itself, saves, and returns.
            raise KeyboardInterrupt
        listener.ran.time_is_up = True
        listener.give_up()
    if searcher.repeating_since is not None:
        listener.ran.repeats_s = time.monotonic() - searcher.repeating_since
    return listener.ran


ENDLESS = 10**9
"""Jobs that Ray Tune may ask for: the agenda says when there are no more."""


def _folder_name(trial: Any) -> str:
    job: TrialJob = trial.config["job"]
    return f"{job.number:04d}-{job.repeat}-{job.until}"


class _InOrder(Searcher):  # type: ignore[misc]
    """An agenda, for Ray Tune to ask."""

    def __init__(
        self, agenda: Agenda, first: TrialJob, config_of: Callable[[TrialJob], Any]
    ) -> None:
        super().__init__()
        self._agenda, self._config_of = agenda, config_of
        self._first: TrialJob | None = first
        self.repeating_since: float | None = None
        """On the monotonic clock."""

    def suggest(self, trial_id: str) -> Any:
        job, self._first = self._first or self._agenda.next(), None
        if job is None:
            return Searcher.FINISHED if self._agenda.is_over else None
        if job.repeat and self.repeating_since is None:
            self.repeating_since = time.monotonic()
        return {"job": job, "training": self._config_of(job)}

    def on_trial_complete(self, trial_id: str, *_: Any, **__: Any) -> None:
        """Nothing: the agenda hears of it with all of its epochs."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search that goes on asks the same questions again."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""


@dataclass
class _Record:
    """What is known of a trial or repeat so far, over all of its jobs."""

    parameters: Mapping[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    """Of the jobs before this one."""
    of_job: float = 0.0
    node: str = ""
    status: str = ""
    reason: str = ""


class _Listener(tune.Callback, tune.Stopper):  # type: ignore[misc]
    """Hears of every epoch, and tells the agenda how jobs end.

    It ends the search where one fails through no fault of its settings: the shards are damaged, or
    S3 is away. Such a trial is not over, nor is any that Ray Tune begins without its result.
    """

    def __init__(self, agenda: Agenda, task: Task, gpus: float) -> None:
        self._agenda, self._metric, self._gpus = agenda, task.base.best_metric, gpus
        self._records: dict[tuple[int, int], _Record] = {}
        self._running: set[str] = set()
        self.ran = JobsRun()
        self.fault = ""
        """What ended the search."""

    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        self._running.add(trial.trial_id)
        self.ran.at_once = max(self.ran.at_once, len(self._running))

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        record = self._record(trial.config["job"])
        for line in result["lines"]:
            # A trial that was begun again tells from there.
            record.history = [h for h in record.history if h["epoch"] < line["epoch"]] + [line]
        record.of_job = result["time_total_s"]
        record.node = result.get("node", record.node)
        record.status, record.reason = result.get("status", ""), result.get("reason", "")

    def on_trial_complete(
        self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any
    ) -> None:
        self._running.discard(trial.trial_id)
        record = self._record(trial.config["job"])
        if record.status:  # Else it was cut short.
            self._tell(trial.config["job"], record)

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        """It failed as often as it may."""
        self._running.discard(trial.trial_id)
        job, error = trial.config["job"], trial.get_pickled_error() or RuntimeError("lost")
        cause = getattr(error, "cause", error)
        if isinstance(cause, CommandError):
            self.fault = self.fault or f"trial {job.number}: {cause}"
        if self.fault:
            return
        record = self._record(job)
        record.status = "out-of-memory" if isinstance(cause, OutOfMemoryError) else "failed"
        record.reason = _last_line(error)
        self._tell(job, record)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether to stop this trial."""
        return False

    def stop_all(self) -> bool:
        return bool(self.fault)

    def give_up(self) -> None:
        """Ends the trials that the end of the search's time has cut short."""
        for number, parameters in self._agenda.open_trials():
            record = self._records.get((number, 0)) or _Record(parameters)
            record.status, record.reason = "stopped", "the time was up"
            self._agenda.give_up(self._trial(number, 0, record))

    def _record(self, job: TrialJob) -> _Record:
        return self._records.setdefault((job.number, job.repeat), _Record(job.parameters))

    def _tell(self, job: TrialJob, record: _Record) -> None:
        self._agenda.tell(job, self._trial(job.number, job.repeat, record))
        self.ran.trained.add((job.number, job.repeat))
        self.ran.seconds += record.of_job
        record.seconds, record.of_job, record.status = record.seconds + record.of_job, 0.0, ""

    def _trial(self, number: int, repeat: int, record: _Record) -> Trial:
        value = None
        if record.status in ("finished", "stopped"):
            value = objective(record.history, self._metric)
        return Trial(
            number,
            record.parameters,
            record.status,
            value,
            best_epoch(record.history, self._metric),
            list(record.history),
            record.seconds + record.of_job,
            self._gpus,
            record.node,
            record.reason,
            repeat,
        )


def _last_line(error: BaseException) -> str:
    """Ray puts the traceback before it."""
    return str(error).strip().splitlines()[-1] if str(error).strip() else "lost"
