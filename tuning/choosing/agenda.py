"""What a search trains next: a function of its seed and of results, not of who came in first.

Trials are asked of a `Study`, compared at rungs where the search halves, and the best few are
repeated with other seeds. What is known from before an interruption is told again, and decides
again what it decided then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from training.metrics import LOWER_IS_BETTER
from tuning.choosing.halving import COHORT, Cohort, rung_epochs
from tuning.choosing.study import Study
from tuning.choosing.winner import best_epoch, finalists, objective
from tuning.results import Trial

__all__ = ["PAUSED", "Agenda", "TrialJob"]

PAUSED = "paused"
"""Status of a trial that waits at a rung; never written down."""


@dataclass(frozen=True)
class TrialJob:
    """A training, or a part of one. Picklable."""

    number: int
    """Of the trial."""
    repeat: int
    """0, or how much higher its seed is than the trial's."""
    parameters: Mapping[str, Any]
    until: int
    """The epoch that it is trained to, from the beginning or from where it waits."""
    epochs: int
    """Of the whole training."""


class Agenda:
    """The jobs of a search, in an order that its seed decides."""

    def __init__(
        self,
        study: Study,
        num_trials: int,
        *,
        metric: str,
        epochs: int,
        halving: bool,
        repeats: int,
        known: Sequence[Trial],
        on_over: Callable[[Trial], None],
    ) -> None:
        """`epochs` are those of a trial that does not name its own; `known` are trials and repeats
        from before the search was interrupted; `on_over` hears of each that is over."""
        self._study, self._metric, self._epochs = study, metric, epochs
        self._num_trials = num_trials
        self._halving, self._num_repeats = halving, repeats
        self._known = {(trial.number, trial.repeat): trial for trial in known}
        self._on_over = on_over
        self._asked: list[Mapping[str, Any]] = []
        self._queue: deque[TrialJob] = deque()
        self._cohorts: dict[int, Cohort] = {}
        self._finals = False
        self._over: dict[tuple[int, int], Trial] = {}
        self._num_begun = 0
        self.ended = ""
        """Why there were no more trials, before the number that was asked for."""

    @property
    def trials(self) -> list[Trial]:
        """Those that are over, in their order."""
        return [trial for (_, repeat), trial in sorted(self._over.items()) if not repeat]

    @property
    def repeats(self) -> list[Trial]:
        """Those that are over, in their order."""
        return [trial for (_, repeat), trial in sorted(self._over.items()) if repeat]

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to train."""
        return self._finals and not self._queue and len(self._over) == self._num_begun

    def next(self) -> TrialJob | None:
        """The next job; None where it depends on what is not there yet, or there is none."""
        while (job := self._draw()) is not None:
            known = self._recall(job)
            if known is None:
                return job
            self.tell(job, known)
        return None

    def tell(self, job: TrialJob, trial: Trial) -> None:
        """How a job ended. `trial` has the whole history so far."""
        # Where a training has stopped earlier by itself, it is over.
        if trial.status == "finished" and len(trial.history) >= job.until < job.epochs:
            trial = _cut(trial, job, self._metric)
        if trial.status != PAUSED:
            self._end(trial)
        if not self._halving or job.repeat:
            return
        cohort = self._cohorts[job.number // COHORT]
        cohort.results[job.number] = trial
        while cohort.due:
            self._halve(cohort)

    def open_trials(self) -> list[tuple[int, Mapping[str, Any]]]:
        """Number and settings of the trials that were asked for and are not over."""
        return [(n, p) for n, p in enumerate(self._asked) if (n, 0) not in self._over]

    def give_up(self, trial: Trial) -> None:
        """Ends a trial whatever it waits for."""
        self._end(trial)

    def _draw(self) -> TrialJob | None:
        if self._queue:
            return self._queue.popleft()
        if self._goes_on():
            return self._ask() if self._study.ready else None
        if not self._finals and len(self._over) == len(self._asked):
            self._finals = True
            self._repeat()
        return self._queue.popleft() if self._queue else None

    def _goes_on(self) -> bool:
        """Whether there are more trials to ask for. A cohort is asked for whole."""
        number = len(self._asked)
        if number >= self._num_trials or self.ended:
            return False
        whole = not self._halving or number % COHORT == 0 or number == self._study.most
        if whole and self._study.ready:
            self.ended = self._study.exhausted
        return not self.ended

    def _ask(self) -> TrialJob:
        number, parameters = len(self._asked), self._study.ask()
        self._asked.append(parameters)
        self._num_begun += 1
        if self._halving and number % COHORT == 0:
            last = min(number + COHORT, self._num_trials, self._study.most or self._num_trials)
            self._cohorts[number // COHORT] = Cohort([*range(number, last)])
        return self._job(number, 0)

    def _repeat(self) -> None:
        for trial in finalists(self.trials, self._metric):
            for repeat in range(1, self._num_repeats + 1):
                self._num_begun += 1
                self._queue.append(self._job(trial.number, repeat))

    def _job(self, number: int, repeat: int) -> TrialJob:
        """The next part of a trial, or a whole repeat."""
        parameters = self._asked[number]
        epochs = parameters.get("epochs", self._epochs)
        until = epochs
        if self._halving and not repeat:
            until = rung_epochs(epochs)[self._cohorts[number // COHORT].rung]
        return TrialJob(number, repeat, parameters, until, epochs)

    def _halve(self, cohort: Cohort) -> None:
        left = cohort.halve(lower_is_better=self._metric in LOWER_IS_BETTER)
        for trial in left.values():
            if trial.status == PAUSED:
                reason = f"epoch {len(trial.history)}: not in the better half of its cohort"
                self._end(replace(trial, status="stopped", reason=reason))
        for number in cohort.numbers:
            trial, job = cohort.results[number], self._job(number, 0)
            # One that has ended by itself keeps its place, and so does one of very few epochs.
            if trial.status == PAUSED and job.until > len(trial.history):
                del cohort.results[number]
                self._queue.append(job)

    def _end(self, trial: Trial) -> None:
        self._over[trial.number, trial.repeat] = trial
        if not trial.repeat:
            self._study.tell(trial.number, trial.value)
        self._on_over(trial)

    def _recall(self, job: TrialJob) -> Trial | None:
        """What is known of a job already, if it is known to its end."""
        trial = self._known.get((job.number, job.repeat))
        if trial is None:
            return None
        if job.until < job.epochs and len(trial.history) >= job.until:
            return _cut(trial, job, self._metric)
        return None if trial.status == "stopped" else trial


def _cut(trial: Trial, job: TrialJob, metric: str) -> Trial:
    """A trial as it was when it came to a rung."""
    history = trial.history[: job.until]
    value, best = objective(history, metric), best_epoch(history, metric)
    return replace(trial, status=PAUSED, history=history, value=value, best=best, reason="")
