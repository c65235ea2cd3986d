"""The report of a search: one HTML page that needs nothing beside itself.

`render_search_report` is pure: the same search, trials and space give the same text. The page's
words and looks are in `report.html.j2`; the plots come from `tuning.report.figures`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from bintally.terminal.pages import duration, fixed, percent, render_page
from tuning.report.figures import (
    Objective,
    loss_curves,
    parallel_plot,
    parameter_plots,
    progress_plot,
)
from tuning.report.scales import objective_scale
from tuning.results import Trial

__all__ = ["render_search_report"]

NUM_CURVES = 5
METRICS = {
    "accuracy": "exactly right", "within_one": "within one", "rmse": "RMSE", "mae": "MAE",
    "loss": "loss",
}  # fmt: skip
SHARES = {"accuracy", "within_one"}
"""Metrics told in percent."""


def render_search_report(
    search: Mapping[str, Any],
    trials: Sequence[Trial],
    space: Mapping[str, Any],
    *,
    importance: Mapping[str, float],
) -> str:
    """One HTML page, self-contained: no script, nothing fetched, and every value escaped.

    `search` is what `best.json` holds, `best` and `chosen` None where no trial has a value; `space`
    has for each parameter `low`, `high` and `log`, or `choices`; `importance` is PED-ANOVA's, a
    share for each parameter, or empty.
    """
    metric = search["metric"]
    trials = sorted(trials, key=lambda trial: trial.number)
    finite = [t.value for t in trials if t.value is not None and math.isfinite(t.value)]
    best = search["best"]
    objective = Objective(
        name=METRICS.get(metric, metric),
        lower_is_better=search["mode"] == "min",
        scale=objective_scale(finite, shares=metric in SHARES),
        winner=best["number"] if best else None,
    )
    ranked = objective.ranked(trials)
    with_result = [trial for trial in ranked if objective.of(trial) is not None]

    def show(value: float | None) -> str:
        return _show(metric, value)

    filters: dict[str, Callable[..., object]] = {
        "duration": duration, "fixed": fixed, "percent": percent, "phrase": _phrase,
        "show": show, "spread": partial(_spread, metric), "value": _value,
        "words": lambda name: name.replace("_", " "),
    }  # fmt: skip
    scale = objective.scale
    return render_page(
        "tuning.report",
        filters,
        search=search,
        space=space,
        trials=trials,
        ranked=ranked,
        objective=objective,
        with_result=len(with_result),
        off_scale=sum(not scale.low <= value <= scale.high for value in finite),
        statuses=Counter(trial.status for trial in trials),
        parameters=list(dict.fromkeys([*space, *(n for t in trials for n in t.parameters)])),
        importance=_bars(importance),
        progress=progress_plot(trials, objective) if trials else "",
        parallel=parallel_plot(trials, space, objective) if trials else "",
        by_parameter=parameter_plots(trials, space, objective) if with_result else [],
        curves=loss_curves(with_result[:NUM_CURVES], objective, show),
        time=_time(search, trials),
    )


def _bars(importance: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Name, share and length of the bar (1 for the longest), the most important first."""
    known = {name: share for name, share in importance.items() if math.isfinite(share)}
    longest = max(known.values(), default=0) or 1
    ordered = sorted(known.items(), key=lambda item: (-item[1], item[0]))
    return [(name, share, share / longest) for name, share in ordered]


def _time(search: Mapping[str, Any], trials: Sequence[Trial]) -> dict[str, Any]:
    names = {
        "features": "Features", "search": "Search", "repeats": "Repeats of the best",
        "winner": "Training the winner",
    }  # fmt: skip
    parts = {name: search["seconds"].get(key) or 0.0 for key, name in names.items()}
    in_trials = sum(trial.seconds for trial in trials)
    searching = parts["Search"]
    nodes = Counter(trial.node for trial in trials)
    return {
        "parts": parts,
        "total": sum(parts.values()),
        "in_trials": in_trials,
        "at_once": in_trials / searching if searching else None,
        "a_minute": 60 * len(trials) / searching if searching else None,
        "nodes": sorted(nodes.items()),
    }


def _show(metric: str, value: float | None) -> str:
    return percent(value) if metric in SHARES else fixed(value, 3)


def _phrase(value: float | None, metric: str) -> str:
    """A result in words that follow "gets"."""
    shown = _show(metric, value)
    if metric in SHARES:
        return f"{shown} {METRICS[metric]}"
    unit = " items" if metric in ("rmse", "mae") else ""
    article = "an" if metric in ("rmse", "mae") else "a"
    return f"{article} {METRICS.get(metric, metric)} of {shown}{unit}"


def _spread(metric: str, value: float | None) -> str:
    """A standard error, in the metric's own unit."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} points" if metric in SHARES else fixed(value, 3)


def _value(value: Any) -> str:
    """A parameter's value: as exact as it is useful."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
