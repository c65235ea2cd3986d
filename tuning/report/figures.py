"""The plots of a search: its trials in order, all parameters at once, and each by itself."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bintally.terminal.plots import ACCENT, INK, LINE, MUTED, PAPER, Plot, line_plot, points, svg
from tuning.report.scales import Scale, objective_scale, parameter_scale, shorten
from tuning.results import Trial

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Objective", "loss_curves", "parallel_plot", "parameter_plots", "progress_plot"]

SPLITS = ("train", "validation")
NO_RESULT = -0.14
"""Where on the objective's axis (0 to 1) trials stand that have no value."""


@dataclass(frozen=True)
class Objective:
    """What the search looked for, of all of its trials."""

    name: str
    lower_is_better: bool
    scale: Scale
    winner: int | None
    """Number of the best trial."""

    def of(self, trial: Trial) -> float | None:
        """Its value; None where there is none, or none that is a number."""
        return trial.value if trial.value is not None and math.isfinite(trial.value) else None

    def ranked(self, trials: Sequence[Trial]) -> list[Trial]:
        """The best first; those without a value last."""
        sign = 1 if self.lower_is_better else -1

        def key(trial: Trial) -> tuple[bool, float, int]:
            value = self.of(trial)
            return value is None, sign * (value or 0.0), trial.number

        return sorted(trials, key=key)

    def height(self, value: float | None) -> float:
        """Where it stands: 0 to 1, or below."""
        place = self.scale.position(value)
        return NO_RESULT if place is None else place


def progress_plot(trials: Sequence[Trial], objective: Objective) -> Markup:
    """Every trial's objective in the order of the search, and the best so far as steps."""
    better = min if objective.lower_is_better else max
    best: list[tuple[int, float]] = []
    for trial in trials:
        value = objective.of(trial)
        if value is not None:
            best.append((trial.number, better(value, best[-1][1]) if best else value))

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        _draw_trials(axes, trials, [trial.number for trial in trials], objective, legend=True)
        if best:
            steps = [*best, (trials[-1].number, best[-1][1])]
            heights = [objective.height(value) for _, value in steps]
            where = [number for number, _ in steps]
            look: dict[str, Any] = {"color": ACCENT, "drawstyle": "steps-post", "zorder": 2.5}
            axes.plot(where, heights, label="best so far", **look)
        _objective_axis(axes, trials, objective)
        axes.margins(x=0.04)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        axes.set_xlabel("trial")
        legend: dict[str, Any] = {"loc": "outside upper left", "ncols": 4}
        figure.legend(borderaxespad=0.0, handlelength=1.4, columnspacing=1.4, **legend)

    alt = f"{objective.name} by trial: no trial has a value."
    if best:
        first, last = (objective.scale.label(value) for value in (best[0][1], best[-1][1]))
        alt = f"{objective.name} by trial: the best so far goes from {first} to {last}."
    return svg(alt, (4.0, 2.7), draw)


def parameter_plots(
    trials: Sequence[Trial], space: Mapping[str, Any], objective: Objective
) -> list[Plot]:
    """The objective by each parameter."""
    return [_parameter_plot(trials, name, space[name], objective) for name in space]


def _parameter_plot(
    trials: Sequence[Trial], name: str, options: Mapping[str, Any], objective: Objective
) -> Plot:
    having = [trial for trial in trials if name in trial.parameters]
    scale = parameter_scale(options, [trial.parameters[name] for trial in having])
    placed = [(scale.position(trial.parameters[name]), trial) for trial in having]
    places = [place for place, _ in placed if place is not None]
    shown = [trial for place, trial in placed if place is not None]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        band = 0.5 / len(scale.choices) if scale.choices else 0.0
        if band:
            _draw_medians(axes, places, shown, objective, band)
        across = [at + band * _spread(trial) for at, trial in zip(places, shown, strict=True)]
        _draw_trials(axes, shown, across, objective)
        _objective_axis(axes, shown, objective)
        rim = 0.05 + band / 2
        axes.set_xlim(-rim, 1 + rim)
        ticks = scale.ticks(5)
        axes.set_xticks([at for at, _ in ticks], [label for _, label in ticks])
        if sum(len(label) for _, label in ticks) > 40:
            axes.tick_params("x", rotation=30)
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")

    title = name.replace("_", " ")
    alt = f"{objective.name} by {title}, of {len(shown)} trials."
    return Plot(title, svg(alt, (3.6, 2.5), draw))


def _spread(trial: Trial) -> float:
    """-0.5 to 0.5: apart from its neighbours' in a category (by the golden ratio)."""
    return (trial.number * 0.618034) % 1 - 0.5


def _draw_medians(
    axes: Axes, places: Sequence[float], trials: Sequence[Trial], objective: Objective, band: float
) -> None:
    for place in sorted(set(places)):
        here = [objective.of(t) for at, t in zip(places, trials, strict=True) if at == place]
        values = [value for value in here if value is not None]
        if values:
            height = objective.height(statistics.median(values))
            ends = [place - 0.75 * band, place + 0.75 * band]
            axes.plot(ends, [height, height], color=MUTED, lw=1.2, zorder=2)


def _draw_trials(
    axes: Axes,
    trials: Sequence[Trial],
    across: Sequence[float],
    objective: Objective,
    *,
    legend: bool = False,
) -> None:
    """A dot for each trial, a cross for one without a value, the winner in colour."""
    winner: dict[str, Any] = {"ms": 8, "mfc": PAPER, "mec": ACCENT, "mew": 2.0, "zorder": 4}
    dot: dict[str, Any] = {"ms": 4, "mfc": INK, "mec": "none", "alpha": 0.5, "zorder": 3}
    cross: dict[str, Any] = {"ms": 5, "color": MUTED, "mew": 1.2, "zorder": 3, "clip_on": False}
    kinds: dict[str, list[tuple[float, float]]] = {"trial": [], "no result": [], "winner": []}
    for at, trial in zip(across, trials, strict=True):
        kind = "trial" if objective.of(trial) is not None else "no result"
        kind = "winner" if trial.number == objective.winner else kind
        kinds[kind].append((at, objective.height(objective.of(trial))))
    for (kind, where), marker, look in zip(
        kinds.items(), ("o", "x", "o"), (dot, cross, winner), strict=True
    ):
        if where:
            name = kind if legend else None
            axes.plot(*zip(*where, strict=True), marker, ls="none", label=name, **look)


def _objective_axis(axes: Axes, trials: Sequence[Trial], objective: Objective) -> None:
    ticks = objective.scale.ticks(5)
    none = any(objective.of(trial) is None for trial in trials)
    if none:
        axes.axhspan(NO_RESULT - 0.07, NO_RESULT + 0.07, color=LINE, alpha=0.45, lw=0)
    axes.set_ylim(NO_RESULT - 0.07 if none else -0.08, 1.08)
    axes.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
    axes.set_ylabel(objective.name)


def parallel_plot(
    trials: Sequence[Trial], space: Mapping[str, Any], objective: Objective
) -> Markup:
    """Every trial as a line over an axis for each parameter, and the objective's at the end with
    the best on top: the better, the stronger."""
    names = list(space)
    scales = [
        parameter_scale(
            space[name], [trial.parameters[name] for trial in trials if name in trial.parameters]
        )
        for name in names
    ]
    order = objective.ranked(trials)[::-1]  # the best are drawn last, over the others
    with_result = sum(objective.of(trial) is not None for trial in trials)
    bands = [min(0.1, 0.5 / len(scale.choices)) if scale.choices else 0.0 for scale in scales]
    # Of many trials only the best stand out, else they would all be one blot.
    faintest, contrast, dashed = (0.14, 2, 0.6) if len(trials) <= 50 else (0.05, 6, 0.3)

    def result_height(place: float) -> float:
        return 1 - place if objective.lower_is_better and place >= 0 else place

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.set_axis_off()
        ranks = iter(range(1, with_result + 1))
        for trial in order:
            line = []
            for name, scale, band in zip(names, scales, bands, strict=True):
                at = scale.position(trial.parameters.get(name))
                line.append(math.nan if at is None else at + band * _spread(trial))
            line.append(result_height(objective.height(objective.of(trial))))
            look: dict[str, Any] = {"color": INK, "lw": 1.0, "solid_joinstyle": "round"}
            if trial.number == objective.winner:
                next(ranks)
                look |= {"color": ACCENT, "lw": 2.6, "marker": "o", "ms": 5, "zorder": 5}
            elif objective.of(trial) is None:
                look |= {"color": MUTED, "ls": (0, (2, 2)), "lw": 0.9, "alpha": dashed}
            else:
                look["alpha"] = (
                    faintest + (0.75 - faintest) * (next(ranks) / with_result) ** contrast
                )
            axes.plot(range(len(line)), line, **look)
        results = [(result_height(at), label) for at, label in objective.scale.ticks(7)]
        if with_result < len(trials):
            results.append((NO_RESULT, "no result"))
            axes.plot([len(names)], [NO_RESULT], "x", ms=5, color=MUTED, mew=1.2, clip_on=False)
        for column, ticks in enumerate([*(scale.ticks(7) for scale in scales), results]):
            last = column == len(names)
            band = 0 if last else bands[column]
            # A category is a stretch of its axis.
            parts = [(at - band / 2, at + band / 2) for at, _ in ticks] if band else [(0, 1)]
            for part in parts:
                axes.plot([column] * 2, part, color=MUTED, lw=3 if band else 1, zorder=4)
            for at, label in ticks:
                words = f"  {label}" if last else f"{label}  "
                words = words.replace(" ", "\N{NO-BREAK SPACE}")
                side = "left" if last else "right"
                axes.text(column, at, words, size=8, color=INK, ha=side, va="center", zorder=6)
        for column, name in enumerate([*names, objective.name]):
            words = shorten(name.replace("_", " "))
            axes.text(column, 1.1, words, weight="bold", color=INK, ha="center", va="bottom")
        axes.set_xlim(-0.35, len(names) + 0.35)
        axes.set_ylim(NO_RESULT - 0.04 if with_result < len(trials) else -0.06, 1.18)

    listed = ", ".join(name.replace("_", " ") for name in names)
    alt = f"Parallel coordinates of {len(trials)} trials: {listed}, and {objective.name}."
    return svg(alt, (max(9.6, 1.25 * (len(names) + 1)), 3.9), draw)


def loss_curves(trials: Sequence[Trial], objective: Objective, show: Any) -> list[Plot]:
    """Loss by epoch of some trials, all on one scale."""
    series = {
        trial.number: {split: points(trial.history, split, "loss") for split in SPLITS}
        for trial in trials
    }
    losses = [loss for lines in series.values() for _, values in lines.values() for loss in values]
    scale = objective_scale(losses, shares=False)
    rim = 0.08 * (scale.high - scale.low) or 0.1
    return [
        line_plot(
            f"Loss of trial {trial.number}, {show(objective.of(trial))}",
            {split: line for split, line in series[trial.number].items() if line[0]},
            mark=trial.best.get("epoch"),
            mark_name="best",
            limits=(scale.low - rim, scale.high + rim),
        )
        for trial in trials
    ]
