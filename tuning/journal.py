"""Notes of a search as it goes on: a file for each trial that is over, and a table to watch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import OutOfMemoryError
from ray.tune.search import Searcher

from bintally.errors import CommandError
from bintally.terminal.progress import Progress, say
from training.metrics import is_better
from tuning.results import CSV, Trial, read_trials, write_csv, write_trial
from tuning.study import Study
from tuning.trial import Task, number_of

__all__ = ["InOrder", "Journal"]


class InOrder(Searcher):  # type: ignore[misc]
    """A `Study`, for Ray Tune to ask. It answers when all is there that the answer depends on."""

    def __init__(self, study: Study, num_trials: int) -> None:
        super().__init__()
        self._study, self._num_trials = study, num_trials
        self._numbers: dict[str, int] = {}
        self.ended = ""
        """Why there were no more trials, before the number that was asked for."""

    def suggest(self, trial_id: str) -> Any:
        if len(self._numbers) >= self._num_trials or self.ended:
            return Searcher.FINISHED
        if not self._study.ready:
            return None
        if reason := self._study.exhausted:
            self.ended = reason
            return Searcher.FINISHED
        number = self._numbers[trial_id] = len(self._numbers)
        return {"number": number, "parameters": self._study.ask()}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        value = None if error or not result else result.get("value")
        finite = value is not None and abs(value) != float("inf")
        self._study.tell(self._numbers[trial_id], value if finite else None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search that goes on asks the same questions again (`Task.known`)."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""


class Journal(tune.Callback, tune.Stopper):  # type: ignore[misc]
    """Hears of every epoch, and writes down what is over.

    It ends the search where a trial fails through no fault of its settings: the shards are damaged,
    or S3 is away. Such a trial is not over, nor is any that Ray Tune begins without its result.
    """

    def __init__(
        self, folder: Path, task: Task, progress: Progress, gpus: float, time_left_s: float | None
    ) -> None:
        self._folder, self._task, self._gpus = folder, task, gpus
        self._until = float("inf") if time_left_s is None else time.monotonic() + time_left_s
        self._histories: dict[int, list[dict[str, Any]]] = {}
        self._last: dict[int, dict[str, Any]] = {}
        self._parameters: dict[int, Mapping[str, Any]] = {}
        self._trials = {trial.number: trial for trial in read_trials(folder)}
        self._shown: list[str] = []
        self._best: float | None = None
        self._progress = progress
        self.fault = ""
        """What ended the search."""

    @property
    def trials(self) -> list[Trial]:
        """Those that are over, in their order."""
        return [trial for _, trial in sorted(self._trials.items())]

    @property
    def time_is_up(self) -> bool:
        """Whether the search had to end."""
        return time.monotonic() >= self._until

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        number = number_of(trial.config, trial.trial_id)
        self._parameters[number] = trial.config["parameters"]
        reported = self._last.setdefault(number, {})
        reported |= {name: value for name, value in result.items() if name in REPORTED}
        # One that inherited has another past.
        history = [*(result.get("past") or self._histories.get(number, []))]
        if (line := result.get("line")) is not None:
            # A trial that was begun again tells from there.
            history = [h for h in history if h["epoch"] < line["epoch"]] + [line]
        self._histories[number] = history

    def on_trial_complete(
        self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any
    ) -> None:
        self._note(trial, None)

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        """It failed as often as it may."""
        error = trial.get_pickled_error() or RuntimeError("lost")
        cause = getattr(error, "cause", error)
        if isinstance(cause, CommandError):
            number = number_of(trial.config, trial.trial_id)
            self.fault = self.fault or f"trial {number}: {cause}"
        self._note(trial, error)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether to stop this trial."""
        return False

    def stop_all(self) -> bool:
        return bool(self.fault)

    def _note(self, trial: Any, error: BaseException | None) -> None:
        number = number_of(trial.config, trial.trial_id)
        reported = self._last.get(number, {})
        history = self._histories.get(number, [])
        status, reason = reported.get("status"), reported.get("reason", "")
        if error is not None:
            memory = isinstance(getattr(error, "cause", error), OutOfMemoryError)
            status = "out-of-memory" if memory else "failed"
            reason = _last_line(error)
        elif status is None:
            epochs = trial.config["parameters"].get("epochs", self._task.base.epochs)
            whole = bool(history) and history[-1]["epoch"] >= epochs
            status, reason = ("finished", "") if whole else ("stopped", "behind the others")
        self._write(number, trial.config["parameters"], status, reason)

    def end_open_trials(self) -> None:
        """Writes down the trials that the end of the search's time has cut short."""
        for number, parameters in sorted(self._parameters.items()):
            self._write(number, parameters, "stopped", "the time was up")

    def _write(self, number: int, parameters: Mapping[str, Any], status: str, reason: str) -> None:
        if number in self._trials or self.fault:
            return
        reported = self._last.get(number, {})
        best = reported.get("best", {})
        value = best["validation"][self._task.base.best_metric] if best else None
        over = Trial(
            number,
            parameters,
            status,
            value if status in ("finished", "stopped") else None,
            best,
            self._histories.get(number, []),
            reported.get("time_total_s", 0.0),
            self._gpus,
            reported.get("node", ""),
            reason,
        )
        self._trials[number] = over
        write_trial(self._folder, over)
        write_csv(self._folder / CSV, self.trials)
        self._show(over)
        self._progress.update()

    def _show(self, trial: Trial) -> None:
        """A row of the table, beneath its head."""
        metric = self._task.base.best_metric
        names = [*trial.parameters]
        if not self._shown:
            self._shown = names
            head = "".join(f"{name[:14]:>15}" for name in names)
            say(f"{'trial':>5}{head}{metric:>12}{'epoch':>7}{'s':>7}")
        cells = "".join(f"{_short(trial.parameters.get(name)):>15}" for name in self._shown)
        if trial.value is None:
            say(f"{trial.number:>5}{cells}  {trial.status}: {trial.reason}")
            return
        if self._best is None or is_better(metric, trial.value, self._best):
            self._best, mark = trial.value, "  best so far"
        else:
            mark = "" if trial.status == "finished" else f"  {trial.status}"
        say(
            f"{trial.number:>5}{cells}{trial.value:>12.4f}{trial.best['epoch']:>7}"
            f"{trial.seconds:>7.1f}{mark}"
        )


def _last_line(error: BaseException) -> str:
    """Ray puts the traceback before it."""
    return str(error).strip().splitlines()[-1] if str(error).strip() else "lost"


REPORTED = ("best", "status", "reason", "node", "time_total_s")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:14]
