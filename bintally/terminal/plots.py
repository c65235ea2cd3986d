"""Plots of reports: drawn by matplotlib, in the page's own colours, light or dark."""

from __future__ import annotations

import io
import math
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bintally.terminal.pages import percent

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

__all__ = [
    "ACCENT", "INK", "LINE", "MUTED", "PAPER", "THEME",
    "Plot", "Points", "line_plot", "points", "save_figure", "svg",
]  # fmt: skip

THEME = {
    name: f"#0a0b{number:02x}"
    for number, name in enumerate(("paper", "ink", "muted", "line", "accent", "fill", "rest"), 16)
}
"""Stand-in colours: `svg` replaces them by the page's CSS variables of these names, so that a plot
follows the reader's light or dark theme."""
PAPER, INK, MUTED, LINE, ACCENT = list(THEME.values())[:5]

_MATPLOTLIB_STYLE = threading.Lock()
"""Held while matplotlib's settings, which are the whole process's, are ours."""

Draw = Callable[["Figure"], None]
Points = tuple[list[int], list[float]]
"""Epochs, and a value for each."""


@dataclass(frozen=True)
class Plot:
    """A plot and its heading."""

    title: str
    svg: Markup


def save_figure(
    draw: Draw,
    inches: tuple[float, float],
    colours: Mapping[str, str],
    kind: Literal["png", "svg"],
    salt: str,
) -> bytes:
    """What `draw` draws, as a file of that kind: the same bytes for the same input.

    `colours` has paper, ink, muted and line. An SVG has no background, and its ids, made from
    `salt`, differ from those of a plot with another salt.
    """
    with _MATPLOTLIB_STYLE:
        # A notebook's, which this environment may not have. We draw into memory, without any.
        backend = os.environ.pop("MPLBACKEND", None)
        from matplotlib import style

        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    settings = {
        "axes.axisbelow": True, "axes.edgecolor": colours["line"], "axes.facecolor": "none",
        "axes.grid": True, "axes.grid.axis": "y", "axes.labelcolor": colours["muted"],
        "axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False,
        "axes.titlecolor": colours["ink"], "axes.titlelocation": "left", "axes.titlesize": 9,
        "axes.titleweight": "bold", "axes.titlepad": 10.0,
        "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same layout everywhere
        "font.size": 8.5, "grid.color": colours["line"], "grid.linewidth": 0.7,
        "legend.frameon": False, "legend.labelcolor": colours["ink"],
        "lines.linewidth": 1.6, "lines.markersize": 3.0,
        "svg.fonttype": "none",  # text stays text, in the page's own font
        "svg.hashsalt": salt,
        "text.parse_math": False,
        "xtick.color": colours["line"], "xtick.labelcolor": colours["muted"],
        "ytick.labelcolor": colours["muted"], "ytick.left": False,
    }  # fmt: skip
    nothing: Mapping[str, Mapping[str, Any]] = {
        "svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
        "png": {"Software": None},
    }
    buffer = io.BytesIO()
    with _MATPLOTLIB_STYLE, style.context(settings, after_reset=True):
        margin = 0.12 if kind == "png" else 0.04
        figure = Figure(inches, layout=ConstrainedLayoutEngine(w_pad=margin, h_pad=margin))
        figure.set_facecolor(colours["paper"] if kind == "png" else "none")
        draw(figure)
        figure.savefig(buffer, format=kind, dpi=200, metadata=nothing[kind])
    return buffer.getvalue()


def svg(alt: str, inches: tuple[float, float], draw: Draw) -> Markup:
    """What `draw` draws in the colours of `THEME`, as an `<svg>` element for the page.

    `alt` says what there is to see; two plots of a page have different ones.
    """
    from markupsafe import Markup, escape

    text = save_figure(draw, inches, THEME, "svg", alt).decode()
    inner = text[text.index(">", text.index("<svg")) + 1 :]
    inner = re.sub(r'<g id="[^"]*">', "<g>", inner)
    for name, colour in THEME.items():
        inner = inner.replace(colour, f"var(--{name})")
    box = " ".join(f"{72 * side:g}" for side in inches)
    head = f'<svg role="img" aria-label="{escape(alt)}" viewBox="0 0 {box}">'
    return Markup(head + inner)  # safe: matplotlib escapes the text that it draws


def points(history: Sequence[Mapping[str, Any]], *keys: str) -> Points:
    """The epochs of a run's `metrics.jsonl` that have a value under `keys`, and the values."""
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


def line_plot(
    title: str,
    series: Mapping[str, Points],
    *,
    mark: int | None = None,
    mark_name: str = "checkpoint",
    ticks: Sequence[int] = (),
    as_percent: bool = False,
    from_zero: bool = False,
    limits: tuple[float, float] | None = None,
) -> Plot:
    """Values by epoch, a line for each of `series`; `mark` points out an epoch, and a triangle at
    the foot each of `ticks`.

    `limits` are the ends of the upright axis, for plots that are to be compared.
    """
    show = percent if as_percent else "{:.4g}".format

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator, PercentFormatter

        axes = figure.add_subplot()
        # The last series is the one to look at; the others lie behind it, dashed, so that they
        # can be told apart without their colours.
        for name, (epochs, values) in series.items():
            last = name == list(series)[-1]
            colour, dashes = (ACCENT, "-") if last else (MUTED, (0, (3, 1.5)))
            few = "o" if len(epochs) <= 30 else None
            axes.plot(epochs, values, linestyle=dashes, marker=few, color=colour, label=name)
            if mark in epochs:
                value = values[epochs.index(mark)]
                axes.plot([mark], [value], "o", ms=7, mfc=PAPER, mec=colour, mew=1.6, zorder=5)
        every = [epoch for epochs, _ in series.values() for epoch in epochs]
        if mark is not None and mark in every:
            axes.axvline(mark, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
            side = "right" if mark > (min(every) + max(every)) / 2 else "left"
            label = f"\N{NO-BREAK SPACE}{mark_name}, epoch {mark}\N{NO-BREAK SPACE}"
            place = axes.get_xaxis_transform()
            axes.text(mark, 1, label, size=7.5, color=MUTED, ha=side, va="top", transform=place)
        if ticks:
            foot: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            axes.plot([*ticks], [0] * len(ticks), "^", ms=5, color=MUTED, **foot)
        axes.margins(x=0.04, y=0.12)
        if limits:
            axes.set_ylim(limits)
        if from_zero:
            axes.set_ylim(bottom=0, top=None if axes.get_ylim()[1] > 0 else 1)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(PercentFormatter(1) if as_percent else "{x:g}")
        if len(series) > 1:
            place_legend: dict[str, Any] = {"loc": "outside upper left", "ncols": len(series)}
            figure.legend(borderaxespad=0.0, handlelength=2.2, **place_legend)

    parts = [
        f"{name} goes from {show(values[0])} to {show(values[-1])}"
        for name, (_, values) in series.items()
        if values
    ]
    alt = f"{title} by epoch: {', '.join(parts) or 'no values'}."
    return Plot(title, svg(alt, (3.6, 2.5), draw))
