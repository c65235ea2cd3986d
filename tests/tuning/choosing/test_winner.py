"""A winner that is one: chosen against noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tuning.choosing.winner import best_epoch, choose, finalists, objective, sampling_error
from tuning.results import Trial


def history(values: Sequence[float], metric: str = "accuracy") -> list[dict[str, Any]]:
    return [{"epoch": n, "validation": {metric: value}} for n, value in enumerate(values, 1)]


def trial(number: int, values: Sequence[float], repeat: int = 0, status: str = "finished") -> Trial:
    lines = history(values)
    value = objective(lines, "accuracy")
    best = best_epoch(lines, "accuracy")
    return Trial(number, {}, status, value, best, lines, 1.0, 0.0, "", repeat=repeat)


def test_a_lucky_epoch_does_not_make_a_trial() -> None:
    steady, lucky = [0.5] * 20, [0.4] * 19 + [0.6]
    assert objective(history(steady), "accuracy") == pytest.approx(0.5)
    assert objective(history(lucky), "accuracy") == pytest.approx(0.44)
    assert best_epoch(history(lucky), "accuracy")["epoch"] == 20


@pytest.mark.parametrize(
    ("values", "higher", "lower"),
    [
        ([], None, None),
        ([0.3], 0.3, 0.3),
        ([0.1, 0.4, 0.2, 0.3], 0.4, 0.1),
        ([0.1, 0.4, 0.2, 0.3, 0.3], 0.3, 0.25),
        ([math.nan, math.nan], None, None),
        ([math.nan, 0.2, 0.3], 0.3, 0.2),
    ],
)
def test_a_short_training_counts_by_a_quarter_of_it(
    values: list[float], higher: float | None, lower: float | None
) -> None:
    for metric, value in (("accuracy", higher), ("loss", lower)):
        assert objective(history(values, metric), metric) == (
            value if value is None else pytest.approx(value)
        )


def test_the_best_mean_over_seeds_wins() -> None:
    trials = [trial(n, [value] * 20) for n, value in enumerate((0.50, 0.52, 0.51, 0.1))]
    repeats = [
        trial(n, [value] * 20, repeat)
        for n, values in ((0, (0.51, 0.52)), (1, (0.40, 0.42)), (2, (0.50, 0.49)))
        for repeat, value in enumerate(values, 1)
    ]
    first, second, third = choose(trials, repeats, "accuracy")
    assert [one.number for one in (first, second, third)] == [0, 2, 1]
    assert first.mean == pytest.approx(0.51)
    assert first.standard_error == pytest.approx(0.01 / math.sqrt(3))
    assert choose(trials, [], "accuracy")[0].number == 1
    assert choose(trials, [], "accuracy")[0].standard_error is None


def test_one_that_came_to_nothing_with_another_seed_stands_behind() -> None:
    trials = [trial(0, [0.5] * 9), trial(1, [0.6] * 9)]
    repeats = [trial(0, [0.5] * 9, 1), trial(1, [], 1, "diverged")]
    assert [one.number for one in choose(trials, repeats, "accuracy")] == [0, 1]


def test_what_was_pruned_wins_only_where_nothing_else_came_to_its_end() -> None:
    pruned, whole = trial(0, [0.6] * 9, status="stopped"), trial(1, [0.5] * 9)
    assert finalists([pruned, whole], "accuracy") == [whole]
    assert finalists([pruned], "accuracy") == [pruned]
    assert finalists([trial(0, [])], "accuracy") == []


def test_chance_of_a_sample() -> None:
    assert sampling_error("accuracy", 0.8, 400) == pytest.approx(0.02)
    assert sampling_error("rmse", 0.8, 400) is None


def test_what_is_chosen_is_better_on_held_back_photos_than_the_best_epoch_of_any_trial() -> None:
    """A simulation: searches of 20 trials whose qualities, seeds and epochs differ by what is seen
    on real photos; what counts is the true quality of what is chosen."""
    random = np.random.default_rng(0)
    ours, plain, best = [], [], []
    for _ in range(300):
        quality = random.normal(0.33, 0.015, 20)
        lengths = random.integers(32, 129, 20)

        def train(
            number: int, repeat: int, quality: Any = quality, lengths: Any = lengths
        ) -> Trial:
            noise = random.normal(0, 0.006) + random.normal(0, 0.012, lengths[number])
            return trial(number, [*(quality[number] + noise)], repeat)

        trials = [train(number, 0) for number in range(20)]
        few = finalists(trials, "accuracy")
        repeats = [train(one.number, repeat) for one in few for repeat in (1, 2)]
        ours.append(quality[choose(trials, repeats, "accuracy")[0].number])
        luckiest = max(trials, key=lambda t: t.best["validation"]["accuracy"])
        plain.append(quality[luckiest.number])
        best.append(quality.max())
    lost = [np.mean(best) - np.mean(chosen) for chosen in (ours, plain)]
    assert lost[0] < 0.6 * lost[1]
