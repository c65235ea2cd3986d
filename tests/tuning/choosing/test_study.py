"""The order of a search: the same questions and answers, whoever comes in first."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuning.choosing.study import Study, importance
from tuning.config import AlgorithmName
from tuning.space import Choice, Range, Space

SPACE = Space(
    {"lr": Range(0.001, 0.1, log=True, steps=5), "batch_size": Choice((32, 64, 128, 256))}, {}
)


def objective(parameters: dict[str, Any]) -> float | None:
    """Best at 0.01; some trials come to nothing."""
    if parameters["batch_size"] == 256:
        return None
    return -abs(math.log(parameters["lr"] / 0.01))


def searched(algorithm: AlgorithmName, lag: int, data: Any, **more: Any) -> list[dict[str, Any]]:
    """All questions of a search whose trials end in any order."""
    study = Study(SPACE, algorithm, lower_is_better=False, seed=1, lag=lag, **more)
    asked: list[dict[str, Any]] = []
    running: set[int] = set()
    while True:
        able = study.ready and len(running) < lag and len(asked) < 18 and not study.exhausted
        if able and (not running or data.draw(st.booleans())):
            running.add(len(asked))
            asked.append(study.ask())
        elif running:
            number = data.draw(st.sampled_from(sorted(running)))
            running.remove(number)
            study.tell(number, objective(asked[number]))
        else:
            return asked


@pytest.mark.parametrize("algorithm", get_args(AlgorithmName))
@settings(max_examples=10, deadline=None)
@given(data=st.data(), lag=st.integers(1, 4))
def test_the_same_seed_gives_the_same_trials_whoever_is_done_first(
    algorithm: AlgorithmName, data: st.DataObject, lag: int
) -> None:
    assert searched(algorithm, lag, data) == searched(algorithm, lag, data)


def test_a_grid_is_tried_whole_and_then_ends() -> None:
    study = Study(SPACE, "grid", lower_is_better=False, seed=0, lag=2)
    asked = []
    while not study.exhausted:
        asked.append(study.ask())
        study.tell(len(asked) - 1, 0.0)
    assert asked == SPACE.grid()
    assert study.exhausted == "every combination was tried"


def test_patience_counts_trials_since_the_best_one() -> None:
    study = Study(SPACE, "random", lower_is_better=True, seed=0, lag=1, patience=3)
    told = []
    for number, value in enumerate((5.0, 4.0, 4.0, None, 4.5)):
        told.append(study.exhausted)
        study.ask()
        study.tell(number, value)
    assert told == [""] * 5
    assert study.exhausted == "no better trial in 3"


def test_a_search_learns_from_an_earlier_one_where_it_lies_in_the_space() -> None:
    earlier = [({"lr": 0.01 * (1 + n / 100), "batch_size": 64}, 1.0 - n / 100) for n in range(12)]
    strange = [({"lr": 3.0, "batch_size": 64}, 9.0), ({"lr": 0.01}, 9.0)]
    warm = Study(
        SPACE, "optuna", lower_is_better=False, seed=0, lag=1, earlier=[*earlier, *strange]
    )
    assert warm.num_learned == 12
    cold = Study(SPACE, "optuna", lower_is_better=False, seed=0, lag=1)
    assert warm.ask() != cold.ask()


def test_importance_tells_what_matters() -> None:
    study = Study(SPACE, "random", lower_is_better=False, seed=0, lag=1)
    points = []
    for number in range(60):
        points.append(study.ask())
        study.tell(number, 0.0)
    outcomes = [(p, -abs(math.log(p["lr"] / 0.01))) for p in points]
    shares = importance(SPACE, outcomes, lower_is_better=False)
    assert shares["lr"] > 0.7
    assert sum(shares.values()) == pytest.approx(1)
    assert importance(SPACE, outcomes[:3], lower_is_better=False) == {}
