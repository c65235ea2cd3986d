"""The plot beside a table: a bar for each contestant, its range, and the limit as a line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bintally.storage.folder import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from benchmarks.measure import Spread
    from benchmarks.results import Report

__all__ = ["INK", "LINE", "MUTED", "PAPER", "publish", "write_plot"]

PAPER, INK, MUTED, LINE = "#fdfcf9", "#1d1a16", "#696157", "#d9d1c3"
AMBER, GREY = "#d99100", "#b9b2a6"
LABEL: dict[str, Any] = {"textcoords": "offset points", "va": "center", "ha": "left"}
STYLE = {
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same layout everywhere
    "font.size": 9,
    "svg.hashsalt": "bintally",  # the same input, the same file
}


def publish(report: Report, folder: Path) -> int:
    """Writes JSON, Markdown and plot, and prints the table; 1 where something failed."""
    report.write(folder)
    write_plot(report.drawn, folder)
    print(report.summary())
    print(folder / f"{report.name}.md")
    return int(report.failed)


def write_plot(report: Report, folder: Path) -> None:
    """Writes `<name>.png` and `<name>.svg`, of the first metric."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = draw(report)
        for kind, metadata in {"png": {"Software": None}, "svg": {"Date": None}}.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=180, metadata=metadata)
            write_atomically(folder / f"{report.name}.{kind}", buffer.getvalue())


def draw(report: Report) -> Figure:
    """The bars, longest first; a contestant that failed says so where its bar would be."""
    from matplotlib.figure import Figure

    metric = report.metrics[0]
    bars = [r for r in report.results if r.contestant.role != "limit"]
    spreads = {r.contestant.name: r.spread(metric.key) for r in bars}
    bars.sort(key=lambda r: s.median if (s := spreads[r.contestant.name]) else -1, reverse=True)
    longest = max((s.maximum for s in spreads.values() if s), default=1.0)
    # One that is far away bounds nothing, and its line would leave no room for the bars.
    limits = [
        (result, spread.median)
        for result in report.results
        if result.contestant.role == "limit"
        and (spread := result.spread(metric.key))
        and spread.median < 3 * longest
    ]

    figure = Figure(figsize=(7.6, 1.55 + 0.44 * len(bars)), layout="constrained", facecolor=PAPER)
    axes = figure.add_subplot(facecolor=PAPER)
    for row, result in enumerate(bars):
        ours = result.contestant.role == "ours"
        spread = spreads[result.contestant.name]
        if spread is None:
            axes.annotate("failed", (0, row), (4, 0), **LABEL, color=MUTED, style="italic")
            continue
        axes.barh(row, spread.median, 0.62, color=AMBER if ours else GREY, zorder=2)
        _whisker(axes, row, spread)
        ratio = report.ratio(result)
        axes.annotate(
            metric.format(spread.median) + ("" if ratio is None else f"  ({ratio:.1f}×)"),
            (spread.maximum, row),
            (7, 0),
            **LABEL,
            color=INK,
            weight="bold" if ours else "normal",
            # Over the limit's line, the number stays readable.
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.0},
            zorder=4,
        )
    for result, median in limits:
        axes.axvline(median, color=INK, linewidth=1.1, linestyle=(0, (4, 3)), zorder=3)
        axes.annotate(
            f"{result.contestant.name}: {metric.format(median)}",
            (median, 1),
            (0, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="bottom",
            color=INK,
            size=8,
        )

    # Room on the right for the longest bar's label and half of the limit's.
    axes.set_xlim(0, 1.22 * max([longest, *(median for _, median in limits)]))
    axes.set_ylim(len(bars) - 0.45, -0.6)
    axes.set_yticks(range(len(bars)), [r.contestant.name for r in bars], color=INK)
    axes.set_xlabel(_caption(report), color=MUTED, size=8, loc="left")
    axes.set_title(report.title, color=INK, size=11, weight="bold", loc="left", pad=24)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.tick_params(length=0)
    axes.tick_params(axis="x", labelcolor=MUTED, labelsize=8)
    axes.grid(axis="x", color=LINE, linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    return figure


def _whisker(axes: Axes, row: int, spread: Spread) -> None:
    below, above = spread.median - spread.minimum, spread.maximum - spread.median
    axes.errorbar(
        spread.median, row, xerr=[[below], [above]], color=INK, capsize=3, elinewidth=1, zorder=3
    )


def _caption(report: Report) -> str:
    where = report.environment
    machine = where.gpu or f"{where.num_cores} cores, {where.cpu}"
    rounds = f"median of {report.num_rounds} rounds with lowest and highest"
    baseline = f"× = times {report.baseline.contestant.name}"
    return f"{report.metrics[0].title}, {rounds}\n{baseline}; {machine}"
