"""The report of a training run: one HTML page that needs nothing beside itself.

``render_report`` is pure: it takes what a run left behind (its configuration, the lines of
``metrics.jsonl``, an evaluation, some photos) and returns the page's text, the same for the same
input. The page's words and looks are in ``report.html.j2``; the numbers and plots come from here.
"""

import base64
import io
import json
import math
import re
import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

__all__ = ["Example", "render_report"]

MAX_LABELLED_CLASSES = 20
"""Above this many classes the confusion matrix is a picture without numbers."""

# Plots are drawn in stand-in colours, replaced by the page's CSS variables once they are SVG text,
# so that a plot follows the reader's light or dark theme.
_INK, _MUTED, _LINE, _ACCENT, _PAPER = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
_THEME = {_INK: "ink", _MUTED: "muted", _LINE: "line", _ACCENT: "accent", _PAPER: "paper"}
_STYLE = {
    "axes.edgecolor": _LINE, "axes.labelcolor": _MUTED, "axes.axisbelow": True,
    "axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": _LINE, "grid.linewidth": 0.7,
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same layout everywhere
    "font.size": 8.5,
    "legend.borderaxespad": 0.0, "legend.frameon": False, "legend.handlelength": 2.2,
    "legend.labelcolor": _INK,
    "lines.linewidth": 1.6, "lines.markersize": 3.0,
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "xtick.color": _LINE, "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED, "ytick.left": False,
}  # fmt: skip
_MATPLOTLIB_STYLE = threading.Lock()
"""Held while matplotlib's settings, which are the whole process's, are ours."""

_Points = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Example:
    """A photo with its answer."""

    id: str
    photo: bytes  # JPEG
    count: int  # the true count
    predicted: int
    probability: float  # of the predicted count


@dataclass(frozen=True)
class _Plot:
    title: str
    svg: "Markup"


def render_report(
    *,
    title: str,
    config: Mapping[str, object],
    history: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any],
    examples: Sequence[Example],
    findings: Sequence[Mapping[str, Any]] = (),
) -> str:
    """One HTML page, self-contained: no script, nothing fetched, and every value escaped.

    ``history`` is the lines of ``metrics.jsonl``; empty, the page has no curves. ``evaluation`` is
    what ``training evaluate`` writes. The photos are shown in the order of ``examples``;
    ``findings`` is what ``rules.json`` holds.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        data_url=_data_url,
        duration=_duration,
        fixed=_fixed,
        percent=_percent,
        rate=_rate,
        words=_words,
    )
    template = resources.files("training").joinpath("report.html.j2").read_text(encoding="utf-8")
    classes = list(evaluation["classes"])
    matrix = evaluation["confusion_matrix"]
    labelled = len(classes) <= MAX_LABELLED_CLASSES
    return environment.from_string(template).render(
        title=title,
        config=config,
        evaluation=evaluation,
        examples=examples,
        findings=findings,
        curves=_curves(history, evaluation["checkpoint"]["epoch"]) if history else [],
        pace=_pace(history) if history else None,
        shares=_row_shares(matrix) if labelled else None,
        heatmap=None if labelled else _heatmap(classes, _row_shares(matrix)),
    )


def _row_shares(matrix: Sequence[Sequence[int]]) -> list[list[float]]:
    return [[value / max(1, sum(row)) for value in row] for row in matrix]


def _curves(history: Sequence[Mapping[str, Any]], checkpoint_epoch: int) -> list[_Plot]:
    splits = [name for name in ("train", "validation") if any(line.get(name) for line in history)]
    loss = {split: _points(history, split, "loss") for split in splits}
    accuracy = {split: _points(history, split, "accuracy") for split in splits}
    lr = {"learning rate": _points(history, "lr")}
    return [
        _line_plot("Loss", loss, mark=checkpoint_epoch),
        _line_plot("Exactly right", accuracy, mark=checkpoint_epoch, percent=True),
        _line_plot("Learning rate", lr, from_zero=True),
    ]


def _pace(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the time went, as numbers and as plots."""
    seconds = sum(line["seconds"] for line in history)
    waited = sum(line["seconds"] * line["data_wait_share"] for line in history)
    speed = {"images/s": _points(history, "images_per_s")}
    wait = {"waiting for data": _points(history, "data_wait_share")}
    return {
        "epochs": len(history),
        "seconds": seconds,
        "images_per_s": _median(history, "images_per_s"),
        "model_images_per_s": _median(history, "model_images_per_s"),
        "loader_images_per_s": _median(history, "loader_images_per_s"),
        "data_wait_share": waited / seconds if seconds else 0.0,
        "plots": [
            _line_plot("Images per second", speed, from_zero=True),
            _line_plot("Time spent waiting for data", wait, from_zero=True, percent=True),
        ],
    }


def _median(history: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [line[name] for line in history if line.get(name) is not None]
    return statistics.median(values) if values else None


def _points(history: Sequence[Mapping[str, Any]], *keys: str) -> _Points:
    """The epochs that have a value under ``keys``, and the values."""
    epochs: list[int] = []
    values: list[float] = []
    for line in history:
        value: Any = line
        for key in keys:
            value = value.get(key) if value else None
        if value is not None and math.isfinite(value):
            epochs.append(line["epoch"])
            values.append(float(value))
    return epochs, values


def _line_plot(
    title: str,
    series: Mapping[str, _Points],
    *,
    mark: int | None = None,
    percent: bool = False,
    from_zero: bool = False,
) -> _Plot:
    """Values by epoch, a line for each of ``series``; ``mark`` points out an epoch."""
    show = _percent if percent else "{:.4g}".format

    def draw(figure: "Figure") -> None:
        from matplotlib.ticker import MaxNLocator, PercentFormatter

        axes = figure.add_subplot()
        # The last series is the one to look at; the others lie behind it, dashed, so that they
        # can be told apart without their colours.
        for name, (epochs, values) in series.items():
            last = name == list(series)[-1]
            colour, dashes = (_ACCENT, "-") if last else (_MUTED, (0, (3, 1.5)))
            few = "o" if len(epochs) <= 30 else None
            axes.plot(epochs, values, linestyle=dashes, marker=few, color=colour, label=name)
            if mark in epochs:
                value = values[epochs.index(mark)]
                axes.plot([mark], [value], "o", ms=7, mfc=_PAPER, mec=colour, mew=1.6, zorder=5)
        every = [epoch for epochs, _ in series.values() for epoch in epochs]
        if mark is not None and mark in every:
            axes.axvline(mark, color=_MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
            side = "right" if mark > (min(every) + max(every)) / 2 else "left"
            label = f"\N{NO-BREAK SPACE}checkpoint, epoch {mark}\N{NO-BREAK SPACE}"
            place = axes.get_xaxis_transform()
            axes.text(mark, 1, label, size=7.5, color=_MUTED, ha=side, va="top", transform=place)
        axes.margins(x=0.04, y=0.12)
        if from_zero:
            axes.set_ylim(bottom=0, top=None if axes.get_ylim()[1] > 0 else 1)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(PercentFormatter(1) if percent else "{x:g}")
        if len(series) > 1:
            figure.legend(loc="outside upper left", ncols=len(series))

    parts = [
        f"{name} goes from {show(values[0])} to {show(values[-1])}"
        for name, (_, values) in series.items()
        if values
    ]
    alt = f"{title} by epoch: {', '.join(parts) or 'no values'}."
    return _Plot(title, _svg(alt, (3.6, 2.5), draw))


def _heatmap(classes: Sequence[int], shares: Sequence[Sequence[float]]) -> "Markup":
    """The confusion matrix of many classes, as a picture without numbers."""

    def draw(figure: "Figure") -> None:
        from matplotlib.colors import LinearSegmentedColormap, PowerNorm
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        # From clear to amber, so that the page's own background, light or dark, shows through.
        amber = LinearSegmentedColormap.from_list("amber", [(0.84, 0.5, 0, 0), (0.84, 0.5, 0, 1)])
        axes = figure.add_subplot()
        # The square root: one rare count that is always right would else fade all others out.
        norm = PowerNorm(0.5, vmin=0, vmax=max(map(max, shares)) or 1)
        axes.imshow(shares, cmap=amber, norm=norm, interpolation="none", zorder=2)
        last = len(classes) - 1
        dots = (0, (1, 3))
        axes.plot([0, last], [0, last], color=_MUTED, lw=0.6, linestyle=dots, zorder=3)
        axes.set(xlabel="answered", ylabel="true count")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=10, integer=True))
            name = FuncFormatter(lambda at, _: str(classes[int(at)]) if 0 <= at <= last else "")
            axis.set_major_formatter(name)
        axes.grid(visible=True, axis="both")

    right = [row[place] for place, row in enumerate(shares) if sum(row)]
    mean = statistics.fmean(right) if right else 0.0
    alt = (
        f"Confusion matrix of {len(classes)} classes, true count down and answer across; "
        f"on average {_percent(mean)} of a row lies on the diagonal."
    )
    return _svg(alt, (5.0, 4.8), draw)


def _svg(alt: str, size: tuple[float, float], draw: "Callable[[Figure], None]") -> "Markup":
    """What ``draw`` draws, as an ``<svg>`` element for the page."""
    from markupsafe import Markup, escape
    from matplotlib import style
    from matplotlib.figure import Figure

    salted = {**_STYLE, "svg.hashsalt": alt}  # the plots of a page share no ids
    with _MATPLOTLIB_STYLE, style.context(salted, after_reset=True):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_visible(False)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_visible(False)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    inner = text[text.index(">", text.index("<svg")) + 1 :]
    inner = re.sub(r'<g id="[^"]*">', "<g>", inner)
    for colour, name in _THEME.items():
        inner = inner.replace(colour, f"var(--{name})")
    width, height = (72 * side for side in size)
    head = f'<svg role="img" aria-label="{escape(alt)}" viewBox="0 0 {width:g} {height:g}">'
    return Markup(head + inner)  # safe: matplotlib escapes the text that it draws


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _fixed(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _words(value: object) -> str:
    nested = isinstance(value, Mapping | list | tuple)
    return json.dumps(value, default=str, ensure_ascii=False) if nested else str(value)


def _data_url(photo: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(photo).decode("ascii")
