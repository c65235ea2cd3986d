"""What a search trains, prunes and repeats: the same whoever comes in first, and after a kill."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuning.choosing.agenda import Agenda, TrialJob
from tuning.choosing.halving import COHORT, better_half, rung_epochs
from tuning.choosing.study import Study
from tuning.choosing.winner import best_epoch, choose, objective
from tuning.results import Trial
from tuning.space import Choice, Range, Space

SPACE = Space(
    {
        "lr": Range(0.001, 0.1, log=True, steps=5),
        "epochs": Choice((1, 2, 5, 16, 40)),
        "batch_size": Choice((32, 256)),
    },
    {},
)
METRIC = "accuracy"


def line(job: TrialJob, epoch: int) -> dict[str, Any]:
    """An epoch of a training: it learns, the more the nearer its lr is to 0.01, and jitters."""
    quality = -abs(math.log(job.parameters["lr"] / 0.01))
    jitter = math.sin(1e5 * job.parameters["lr"] + 7 * epoch + 3 * job.repeat)
    value = 0.5 + 0.1 * quality * (1 - 0.5 * epoch / job.epochs) + 0.02 * jitter
    return {"epoch": epoch, "validation": {METRIC: value}}


def train(job: TrialJob) -> Trial:
    """What becomes of a job: some trials come to nothing, some stop by themselves."""
    history = [line(job, epoch) for epoch in range(1, job.until + 1)]
    status = "finished"
    if job.parameters["batch_size"] == 256 and job.parameters["lr"] > 0.05 and job.until > 1:
        status, history = "diverged", history[:1]
    elif job.parameters["lr"] < 0.002:
        history = history[:3]
    value = objective(history, METRIC) if status == "finished" else None
    best = best_epoch(history, METRIC)
    return Trial(
        job.number, job.parameters, status, value, best, history, 1.0, 0.0, "", repeat=job.repeat
    )


@dataclass
class Searched:
    """What a search came to."""

    over: dict[tuple[int, int], Trial] = field(default_factory=dict)
    jobs: list[TrialJob] = field(default_factory=list)
    winner: int | None = None
    ended: str = ""


def searched(
    data: Any,
    *,
    at_a_time: int,
    trials: int = 20,
    algorithm: Any = "optuna",
    halving: bool = True,
    known: Sequence[Trial] = (),
    patience: int = 0,
    most_jobs: int = 10**6,
) -> Searched:
    """A search whose jobs end in any order, or that is killed after so many."""
    found = Searched()
    study = Study(
        SPACE,
        algorithm,
        lower_is_better=False,
        seed=1,
        lag=16 if halving else 8,
        patience=patience,
    )
    agenda = Agenda(
        study,
        trials,
        metric=METRIC,
        epochs=10,
        halving=halving,
        repeats=2,
        known=known,
        on_over=lambda trial: found.over.update({(trial.number, trial.repeat): trial}),
    )
    running: list[TrialJob] = []
    while not agenda.is_over:
        job = agenda.next() if len(running) < at_a_time else None
        if job is not None:
            running.append(job)
            found.jobs.append(job)
            continue
        assert running or agenda.is_over, "it waits for nothing"
        if len(found.jobs) >= most_jobs:
            return found
        if running:
            at = data.draw(st.integers(0, len(running) - 1)) if data else 0
            done = running.pop(at)
            agenda.tell(done, train(done))
    found.winner = choose(agenda.trials, agenda.repeats, METRIC)[0].number
    found.ended = agenda.ended
    return found


@settings(max_examples=15, deadline=None)
@given(data=st.data(), at_a_time=st.integers(1, 8), halving=st.booleans())
def test_the_same_seed_gives_the_same_trials_rungs_and_winner_at_any_concurrency(
    data: st.DataObject, at_a_time: int, halving: bool
) -> None:
    plain = searched(None, at_a_time=1, halving=halving)
    other = searched(data, at_a_time=at_a_time, halving=halving)
    assert other.over == plain.over
    assert other.winner == plain.winner


@settings(max_examples=15, deadline=None)
@given(
    data=st.data(),
    halving=st.booleans(),
    jobs=st.integers(1, 30),
    trials=st.integers(5, 20),
)
def test_a_search_that_was_killed_or_goes_on_with_more_trials_is_one_that_was_not(
    data: st.DataObject, halving: bool, jobs: int, trials: int
) -> None:
    plain = searched(None, at_a_time=1, halving=halving)
    killed = searched(data, at_a_time=4, trials=trials, halving=halving, most_jobs=jobs)
    known = [*killed.over.values()]
    resumed = searched(data, at_a_time=3, halving=halving, known=known)
    asked = {number for number, repeat in plain.over if not repeat}
    for key in {*plain.over}:
        assert resumed.over[key] == plain.over[key]
    assert {number for number, repeat in resumed.over if not repeat} == asked
    assert resumed.winner == plain.winner
    finished = {(t.number, t.repeat) for t in known if t.status in ("finished", "diverged")}
    again = {(job.number, job.repeat) for job in resumed.jobs}
    assert not finished & again, "what is over is not trained again"


def epochs(found: Searched) -> int:
    return sum(len(trial.history) for (_, repeat), trial in found.over.items() if not repeat)


def test_halving_takes_half_of_the_epochs() -> None:
    for trials in (20, 64):
        whole = searched(None, at_a_time=1, trials=trials, algorithm="random", halving=False)
        halved = searched(None, at_a_time=1, trials=trials, algorithm="random")
        same = [trial.parameters for (_, repeat), trial in sorted(whole.over.items()) if not repeat]
        assert [t.parameters for (_, r), t in sorted(halved.over.items()) if not r] == same
        assert epochs(halved) <= 2 / 3 * epochs(whole)


def test_of_a_cohort_the_better_half_goes_on_twice() -> None:
    found = searched(None, at_a_time=1, trials=COHORT)
    trials = [found.over[number, 0] for number in range(COHORT)]
    whole = [trial for trial in trials if trial.status == "finished"]
    for trial in trials:
        if trial.status == "stopped":
            assert len(trial.history) in rung_epochs(trial.parameters["epochs"])[:2]
            assert trial.reason.endswith("not in the better half of its cohort")
            assert trial.value is not None
    assert len(whole) >= 2
    assert len([key for key in found.over if key[1]]) == 2 * min(3, len(whole))


def test_a_grid_is_tried_whole_in_cohorts_and_then_ends() -> None:
    found = searched(None, at_a_time=3, trials=1000, algorithm="grid")
    assert found.ended == "every combination was tried"
    assert len([key for key in found.over if not key[1]]) == len(SPACE.grid())


def test_patience_ends_a_search_at_the_end_of_a_cohort() -> None:
    found = searched(None, at_a_time=3, trials=1000, algorithm="random", patience=5)
    assert found.ended == "no better trial in 5"
    assert len([key for key in found.over if not key[1]]) % COHORT == 0


@pytest.mark.parametrize(
    ("values", "half"),
    [
        ({0: 0.1, 1: 0.3, 2: 0.2, 3: 0.4}, [1, 3]),
        ({0: 0.1, 1: 0.3, 2: 0.2}, [1, 2]),
        ({4: 0.2, 5: 0.2, 6: 0.2}, [4, 5]),
        ({0: None, 1: None, 2: 0.1, 3: 0.2}, [3]),
        ({0: None}, []),
    ],
)
def test_the_better_half(values: Mapping[int, float | None], half: list[int]) -> None:
    assert better_half(values, lower_is_better=False) == half
    lower = {number: None if value is None else -value for number, value in values.items()}
    assert better_half(lower, lower_is_better=True) == half


def test_a_trial_that_was_cut_short_goes_on() -> None:
    plain = searched(None, at_a_time=1)
    known = [
        replace(trial, status="stopped", history=trial.history[:1], reason="the time was up")
        for trial in plain.over.values()
    ]
    assert searched(None, at_a_time=2, known=known).over == plain.over
