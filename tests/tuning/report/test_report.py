"""The report of a search: what a reader of the page may rely on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.html_page import Page
from tuning.report.page import render_search_report
from tuning.report.scales import objective_scale, parameter_scale
from tuning.results import Trial

SPACE: dict[str, Any] = {
    "lr": {"low": 0.001, "high": 0.1, "log": True},
    "batch_size": {"choices": [32, 64, 128]},
    "epochs": {"low": 32, "high": 128},
}


def _metrics(accuracy: float) -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "rmse": 2 - 2 * accuracy,
        "mae": 1.0,
        "within_one": 0.7,
        "loss": 1.5,
        "samples": 1080,
    }


def _trial(number: int, accuracy: float | None = 0.3, **changes: Any) -> Trial:
    """A trial; without an accuracy, one that diverged."""
    parameters = {
        "lr": 0.001 * 1.02 ** (number % 200),
        "batch_size": (32, 64, 128)[number % 3],
        "epochs": 32 + number % 97,
    }
    trial = Trial(number, parameters, "diverged", None, {}, [], 1.25, 0.0, "node-a", "loss was NaN")
    if accuracy is not None:
        history = [
            {
                "epoch": epoch,
                "lr": 0.01,
                "train": {"loss": 1.6 / epoch, "accuracy": 0.3, "samples": 3200},
                "validation": _metrics(accuracy) | {"loss": 1.5 + number / 1000},
                "seconds": 0.4,
            }
            for epoch in (1, 2, 3)
        ]
        best = {"epoch": 2, "validation": _metrics(accuracy)}
        trial = replace(
            trial, status="finished", value=accuracy, best=best, history=history, reason=""
        )
    return replace(trial, **changes)


TRIALS = [
    _trial(0, 0.31),
    _trial(1, None),
    _trial(2, 0.36, node="node-b"),
    _trial(3, None, status="out-of-memory", reason="tried to allocate 2 GiB"),
    _trial(4, 0.33, status="stopped", reason="not among the best third"),
]


def _search(trials: Sequence[Trial], **changes: Any) -> dict[str, Any]:
    """What is found by the accuracy of `trials`; trained, it does a little worse."""
    best = max((t for t in trials if t.value is not None), key=lambda t: t.value or 0, default=None)
    test = {
        "split": "test",
        **_metrics(0.347),
        "baseline": {"count": 3, "accuracy": 0.254, "rmse": 1.35, "mae": 1.06, "within_one": 0.68},
    }
    search: dict[str, Any] = {
        "metric": "accuracy",
        "mode": "max",
        "algorithm": "optuna",
        "scheduler": "none",
        "seed": 0,
        "concurrency": 2,
        "trials": 20,
        "ended": "",
        "backbone": "timm:tf_efficientnet_lite0",
        "weights": "lite0.pth",
        "trainable": "head",
        "dataset": "d" * 64,
        "best": None
        if best is None
        else {
            "number": best.number,
            "parameters": best.parameters,
            "value": best.value,
            "epoch": best.best["epoch"],
        },
        "epochs": 1763,
        "overhead_s": 0.25,
        "winner": {"validation": _metrics(0.355), "test": test} if best else None,
        "capstone": {"validation": _metrics(0.311)},
        "seconds": {"features": 70.1, "search": 30.0, "repeats": 5.0, "winner": 9.0},
        "gpu_hours": 0.25,
    }
    search |= changes
    if (won := search["best"]) is not None:
        found: list[dict[str, Any]] = [
            {"values": [won["value"]] * 2, "mean": won["value"], "standard_error": 0.004},
            {"values": [0.3, None], "mean": 0.3, "standard_error": None},
        ]
        numbered = [one | {"number": n} for one, n in zip(found, (won["number"], 99), strict=True)]
        chosen = {"window": 5, "samples": 1080, "sampling_error": 0.0146, "finalists": numbered}
    return {"chosen": chosen if won else None} | search


def _render(
    trials: Sequence[Trial] = TRIALS,
    space: Mapping[str, Any] = SPACE,
    importance: Mapping[str, float] | None = None,
    **changes: Any,
) -> str:
    shares = {"lr": 0.6, "batch_size": 0.3, "epochs": 0.1} if importance is None else importance
    return render_search_report(_search(trials, **changes), trials, space, importance=shares)


@pytest.fixture(scope="module")
def html() -> str:
    return _render()


def _rows(html: str) -> list[str]:
    """The text of each row of the table of all trials."""
    table = html[html.index('<table class="trials">') :]
    body = table[table.index("<tbody>") : table.index("</tbody>")]
    return [Page(f"<tr{row}").text for row in body.split("<tr")[1:]]


def test_lead_tells_the_winner_beside_baseline_and_preset(html: str) -> None:
    assert (
        "The best trial, 2, has lr 0.00104, batch size 128, epochs 34 ; on validation it gets "
        "36.0% exactly right, the mean of 2 seeds, the capstone preset 31.1% exactly right. "
        "Trained as found, it gets 34.7% exactly right on 1,080 test photos; always answering 3 "
        "would get 25.4% exactly right."
    ) in Page(html).text


def test_results_stand_beside_each_other(html: str) -> None:
    text = Page(html).text
    assert "Trial 2 in the search, epoch 2 36.0% 70.0% 1.280" in text
    assert "On validation" in text
    assert "The winner, trained as found 35.5%" in text
    assert "The capstone preset 31.1%" in text
    assert "On test The winner, trained as found 34.7%" in text
    assert "Always the most frequent count, 3 25.4% 68.0% 1.350 1.060 –" in text


def test_every_trial_is_in_the_table_best_first_and_the_failed_told(html: str) -> None:
    assert _rows(html) == [
        "2 ★ winner 0.00104 128 34 36.0% 2 3 1.2 node-b finished",
        "4 0.001082 64 36 33.0% 2 3 1.2 node-a stopped: not among the best third",
        "0 0.001 32 32 31.0% 2 3 1.2 node-a finished",
        "1 0.00102 64 33 – – 0 1.2 node-a ✗ diverged: loss was NaN",
        "3 0.001061 32 35 – – 0 1.2 node-a ✗ out-of-memory: tried to allocate 2 GiB",
    ]


def test_how_the_winner_was_chosen_is_told_with_its_uncertainty(html: str) -> None:
    text = Page(html).text
    assert "a trial counts by the best mean of 5 epochs in a row" in text
    assert "The best 2 were trained again with other seeds" in text
    assert (
        "1,080 validation photos are a sample, too: by chance alone they are off by 1.5 points"
        in text
    )
    assert "the best epoch of its training with the search’s own seed, 0." in text
    assert "Trial seed 0 seed 1 mean standard error 2 ★ winner 36.0% 36.0% 36.0% 0.4 points" in text
    assert "99 30.0% – 30.0% –" in text
    alone = {"number": 2, "values": [0.36], "mean": 0.36, "standard_error": None}
    chosen = {"window": 5, "samples": 9, "sampling_error": None, "finalists": [alone]}
    text = Page(_render(chosen=chosen)).text
    assert "with no other seed to confirm it" in text
    assert "validation photos are a sample" not in text


def test_plots_say_what_they_show(html: str) -> None:
    page = Page(html)
    assert "exactly right by trial: the best so far goes from 31% to 36%." in page.alts
    assert (
        "Parallel coordinates of 5 trials: lr, batch size, epochs, and exactly right." in page.alts
    )
    assert "exactly right by batch size, of 5 trials." in page.alts
    assert (
        "5 of 20 trials asked for: 2 finished, 1 diverged, 1 out-of-memory, 1 stopped." in page.text
    )
    assert page.text.count("no result") >= 2  # the legend, and the axis of results


def test_loss_curves_of_the_best_five() -> None:
    trials = [_trial(number, 0.3 + number / 100) for number in range(8)]
    curves = [alt for alt in Page(_render(trials)).alts if alt.startswith("Loss of trial")]
    assert [re.findall(r"trial (\d+), (\S+%)", alt) for alt in curves] == [
        [(str(number), f"{30 + number:.1f}%")] for number in (7, 6, 5, 4, 3)
    ]
    assert curves[0] == (
        "Loss of trial 7, 37.0% by epoch: train goes from 1.6 to 0.5333, "
        "validation goes from 1.507 to 1.507."
    )


def test_importance_is_told_in_order_and_what_it_is() -> None:
    importance = {"epochs": 0.1, "lr": 0.6, "batch_size": 0.3, "odd": float("nan")}
    text = Page(_render(importance=importance)).text
    assert "PED-ANOVA (Watanabe et al., 2023)" in text
    assert "lr 60.0% batch size 30.0% epochs 10.0%" in text
    assert "Too few trials have a result" in Page(_render(importance={})).text


def test_time_is_told() -> None:
    text = Page(_render(ended="no better trial in 8")).text
    assert "Features 1 min 10 s Search 30 s Repeats of the best 5 s Training the winner 9 s" in text
    assert "In all 1 min 54 s Trials a minute 10.0 Within trials 6 s" in text
    assert "A trial beside its training 0.25 s Epochs, repeats included 1,763" in text
    assert "GPU-hours 0.25 Nodes node-a: 4 trials; node-b: 1 trial" in text
    assert "The search ended early: no better trial in 8." in text


def test_lower_may_be_better() -> None:
    trials = [replace(t, value=t.value and 2 - 2 * t.value) for t in TRIALS]
    html = _render(
        trials, metric="rmse", mode="min", best=_search(TRIALS)["best"] | {"value": 1.28}
    )
    assert [row.split()[0] for row in _rows(html)] == ["2", "4", "0", "1", "3"]
    page = Page(html)
    assert "on validation it gets an RMSE of 1.280 items" in page.text
    assert "it gets an RMSE of 1.306 items on 1,080 test photos" in page.text
    assert "RMSE by trial: the best so far goes from 1.38 to 1.28." in page.alts


def test_an_objective_the_baseline_has_not_leaves_accuracy_to_compare() -> None:
    text = Page(_render(metric="loss", mode="min")).text
    assert "it gets 34.7% exactly right on 1,080 test photos; always answering 3" in text


def test_winner_not_yet_trained_has_no_test_result() -> None:
    text = Page(_render(winner=None, capstone=None)).text
    assert "It has not been trained yet, so there is no result on test." in text
    assert "On test" not in text
    assert "capstone" not in text


@pytest.mark.parametrize("trials", [[], [_trial(0, None), _trial(1, float("nan"))]])
def test_no_trial_with_a_result_still_has_a_page(trials: list[Trial]) -> None:
    html = _render(trials, importance={}, best=None, winner=None)
    text = Page(html).text
    assert "No trial has a result , so there is no winner" in text
    assert "How the best learned" not in text
    if trials:
        assert "exactly right by trial: no trial has a value." in Page(html).alts
        assert [row.split()[0] for row in _rows(html)] == ["0", "1"]
        assert "★" not in html


def test_one_trial_with_parameters_of_one_value() -> None:
    trial = _trial(0, 0.31, parameters={"lr": 0.01 * (1 + 1e-15), "loss": "ordinal", "epochs": 32})
    space = {
        "lr": {"low": 0.01, "high": 0.01, "log": True},
        "loss": {"choices": ["ordinal"]},
        "epochs": {"low": 32, "high": 32},
    }
    html = _render([trial], space, {})
    assert "The only trial, 0, has lr 0.01, loss ordinal, epochs 32" in Page(html).text
    assert len(_rows(html)) == 1


def test_two_hundred_trials_are_all_listed() -> None:
    trials = [_trial(n, None if n % 9 == 4 else 0.3 + (n % 50) / 1000) for n in range(200)]
    html = _render(trials)
    assert sorted(int(row.split()[0]) for row in _rows(html)) == list(range(200))
    assert sum("★ winner" in row for row in _rows(html)) == 1
    assert sum("✗ diverged" in row for row in _rows(html)) == 22
    assert len(html) < 2_000_000


def test_outlier_is_told_and_does_not_press_the_others_together() -> None:
    losses = [1.40, 1.41, 1.42, 1.43, 1.44, 90.0]
    trials = [_trial(number, loss) for number, loss in enumerate(losses)]
    best = {"number": 0, "parameters": trials[0].parameters, "value": 1.4, "epoch": 2}
    html = _render(trials, metric="loss", mode="min", best=best)
    assert "1 trial far off the others stands at the edge" in Page(html).text
    assert "90.000" in _rows(html)[-1]
    assert objective_scale(losses, shares=False).high == 1.44


def test_values_of_an_earlier_search_have_a_place() -> None:
    trials = [*TRIALS, _trial(9, 0.2, parameters={"lr": 0.5, "batch_size": 1024, "dropout": 0.5})]
    html = _render(trials)
    assert _rows(html)[3].startswith("9 0.5 1024 – 0.5 20.0%")
    assert parameter_scale(SPACE["batch_size"], [1024]).choices == [32, 64, 128, 1024]
    assert parameter_scale(SPACE["lr"], [0.5]).position(0.5) == 1


def test_scales_place_numbers_logarithms_and_categories() -> None:
    lr = parameter_scale(SPACE["lr"], [])
    assert [lr.position(at) for at in (0.001, 0.01, 0.1)] == pytest.approx([0, 0.5, 1])
    assert [label for _, label in lr.ticks(5)] == ["0.001", "0.003", "0.01", "0.03", "0.1"]
    epochs = parameter_scale(SPACE["epochs"], [])
    assert [epochs.position(at) for at in (32, 80, 128, 500, "many", None)] == [
        0, 0.5, 1, 1, None, None,
    ]  # fmt: skip
    assert [label for _, label in epochs.ticks(5)] == ["40", "60", "80", "100", "120"]
    batch_size = parameter_scale(SPACE["batch_size"], [])
    assert batch_size.ticks(5) == [(0, "32"), (0.5, "64"), (1, "128")]


def test_page_is_whole_and_loads_nothing(html: str) -> None:
    page = Page(html)
    assert not re.search(r"https?:|url\((?!#)|@import", html)
    assert "default-src 'none'" in html
    assert page.loads
    assert all(address.startswith("#") for address in page.loads)
    assert "script" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", html))
    assert used <= set(page.ids)


def test_untrusted_text_is_escaped() -> None:
    attack = "\"'><script>alert(1)</script>{{ 7 * 7 }}$x$"
    changes: dict[str, Any] = {"parameters": {attack: attack}, "node": attack, "reason": attack}
    trials = [_trial(0, 0.3, **changes), _trial(1, None, **changes, status=attack)]
    space = {attack: {"choices": [attack, "other"]}}
    names = ("ended", "backbone", "weights", "algorithm", "scheduler", "dataset")
    html = _render(trials, space, {attack: 1.0}, **dict.fromkeys(names, attack))
    page = Page(html)
    assert "<script" not in html
    assert "script" not in page.tags
    assert page.text.count(attack) >= 15
    assert any(attack in alt for alt in page.alts)


def test_same_input_gives_the_same_text() -> None:
    assert _render() == _render()
    assert render_search_report(_search(TRIALS), TRIALS[::-1], SPACE, importance={}) == _render(
        importance={}
    )
