"""What a bucket holds: the statistics of a dataset's catalog, as an HTML page and PNG figures.

The numbers come from `statistics.py`; the page's words and looks are in `report.html.j2`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bintally.dataset.catalog import read_catalog
from bintally.dataset.labels import are_counts
from bintally.dataset.manifest import CATALOG, read_dataset
from bintally.errors import UsageError, WorkError
from bintally.storage.folder import Folder, write_atomically
from bintally.storage.place import Place
from bintally.terminal.pages import render_page
from bintally.terminal.plots import THEME, save_figure, svg
from sharding.report.statistics import (
    FEW,
    Histogram,
    SplitStatistics,
    Statistics,
    summarize_catalog,
)

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["render_dataset_report", "write_report"]

PAGE = "report.html"
FILES = (PAGE, "quantity.png", "repetition.png", "classes.png", "sizes.png")
MARK = b'<p class="eyebrow">Bintally dataset report</p>'
"""What every dataset report has in its page, and no other page of ours."""


def write_report(place: Place, output: Path) -> Path:
    """Describes the dataset at `place` in the folder `output`; returns where the page is.

    Raises as `read_dataset` does, `WorkError` where the catalog is missing or damaged, and
    `UsageError` where the folder holds what no report wrote under the names of the report's files.
    """
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output}: not a folder")
    _refuse_foreign(output)
    dataset = read_dataset(place)
    try:
        catalog = read_catalog(place.get(CATALOG))
    except FileNotFoundError:
        raise WorkError(f"{place}: no {CATALOG}; build the dataset again") from None
    except ValueError as error:
        raise WorkError(f"{place}/{CATALOG}: not readable: {error}; build it again") from error
    html, figures = render_dataset_report(summarize_catalog(catalog, dataset), str(place))
    # The page comes first: an interrupted report's figures are then proven ours.
    write_atomically(output / PAGE, html.encode())
    for name, png in figures.items():
        write_atomically(output / name, png)
    return output / PAGE


def _refuse_foreign(output: Path) -> None:
    """Raises `UsageError` where something is called as a report's files are, and is none of them:
    only beside a page of ours are figures ours."""
    there = [name for name in FILES if os.path.lexists(output / name)]
    if there and (PAGE not in there or MARK not in Folder(output).get(PAGE)):
        raise UsageError(
            f"{output / there[0]}: no `bintally report` wrote it; move it away, or name another "
            "folder with --output"
        )


# Figures are drawn in a palette: as PNG in this one, on the page in its own (`plots.THEME`).
_LIGHT = {
    "paper": "#fdfcf9", "ink": "#1d1a16", "muted": "#696157", "line": "#e4ddd0",
    "fill": "#d99100", "rest": "#b9b2a6",
}  # fmt: skip

Colours = Mapping[str, str]
Draw = Callable[["Axes", Colours], None]


def render_dataset_report(statistics: Statistics, title: str) -> tuple[str, dict[str, bytes]]:
    """The page, self-contained, and the PNG figures by file name. The same input gives the same
    bytes, and every value is escaped."""
    figures = _figures(statistics)
    filters: dict[str, Callable[..., object]] = {
        "number": lambda value, digits=0: "–" if value is None else f"{value:,.{digits}f}",
        "share": lambda part, whole: f"{part / whole:.1%}" if whole else "–",
    }
    html = render_page(
        "sharding.report",
        filters,
        title=title,
        statistics=statistics,
        figures={
            name: {text: _svg(text, draw, _inches(panels)) for text, draw in panels.items()}
            for name, panels in figures.items()
        },
    )
    return html, {f"{name}.png": _png(panels) for name, panels in figures.items()}


def _figures(statistics: Statistics) -> dict[str, dict[str, Draw]]:
    """What to draw, by figure and heading."""
    histograms = statistics.size_histograms
    classes: dict[str, Draw] = {
        f"{name}: {split.samples:,} photos": partial(_draw_classes, statistics, split)
        for name, split in statistics.splits.items()
    }
    bins: dict[str, dict[str, Draw]] = {
        "quantity": {"Bins by quantity": partial(_draw_quantity, statistics)},
        "repetition": {
            "Products by how many photos show them": partial(_draw_repetition, statistics)
        },
    }
    return (bins if statistics.are_bins else {}) | {
        "classes": classes,
        "sizes": {
            "Photos by file size": partial(_draw_sizes, {"kB": histograms["bytes"]}, 1000),
            "Photos by pixels": partial(
                _draw_sizes, {name: histograms[name] for name in ("width", "height")}, 1
            ),
        },
    }


def _draw_quantity(statistics: Statistics, axes: Axes, colours: Colours) -> None:
    histogram = statistics.quantities
    classes = set(statistics.dataset.classes)
    covered = {at: n for at, n in histogram.bars.items() if at in classes}
    left_out = {at: n for at, n in histogram.bars.items() if at not in classes}
    for bars, colour, label in (
        (covered, "fill", "counts in the dataset’s classes"),
        (left_out, "rest", "other counts"),
    ):
        axes.bar(list(bars), list(bars.values()), 0.8, color=colours[colour], label=label)
    last = max(histogram.bars, default=0)
    if last >= FEW:
        more = 1 - statistics.bins_with_few / statistics.bins
        dots: dict[str, Any] = {"color": colours["muted"], "lw": 0.8, "ls": (0, (2, 2))}
        axes.axvline(FEW - 0.5, ymax=0.6, **dots)
        text = f"\N{NO-BREAK SPACE}{FEW} or more: {more:.1%}"
        place: dict[str, Any] = {"va": "top", "transform": axes.get_xaxis_transform()}
        axes.text(FEW - 0.5, 0.6, text, color=colours["muted"], **place)
    if covered and left_out:
        axes.legend(loc="upper right")
    _number_axes(axes, histogram, 1, "items in the bin", "bins")


def _draw_repetition(statistics: Statistics, axes: Axes, colours: Colours) -> None:
    """Bars for 1, 2, 3–4, 5–8, … photos: the tail is long, and each number is written out."""
    bars = Counter[int]()
    for photos, products in statistics.repetition.items():
        bars[(photos - 1).bit_length()] += products
    places = range(max(bars, default=-1) + 1)
    names = [str(2**k) if k < 2 else f"{2 ** (k - 1) + 1}–{2**k}" for k in places]
    drawn = axes.bar(names, [bars[k] for k in places], 0.8, color=colours["fill"])
    axes.bar_label(drawn, fmt="{:,.0f}", padding=2, fontsize=7.5, color=colours["ink"])
    if not bars:
        _say(axes, "no products", colours)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlabel="photos that show the product", ylabel="products")


def _draw_classes(
    statistics: Statistics, split: SplitStatistics, axes: Axes, colours: Colours
) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    shares = [
        number / max(1, of.samples)
        for of in statistics.splits.values()
        for number in of.class_counts.values()
    ]
    counts = split.class_counts
    heights = [number / max(1, split.samples) for number in counts.values()]
    named = not are_counts(statistics.dataset.classes)
    places = [*range(len(counts))] if named else [int(count) for count in counts]
    drawn = axes.bar(places, heights, 0.8, color=colours["fill"])
    if not split.samples:
        _say(axes, "no photos", colours)
    elif len(counts) <= 10:
        axes.bar_label(drawn, fmt="{:.1%}", padding=2, fontsize=7.5, color=colours["ink"])
    axes.set_ylim(0, 1.12 * max(shares, default=0) or 1)  # one scale for all splits
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    across = "items in the bin" if statistics.are_bins else "class"
    if named:  # Their names, which may be long and many, stand in the table.
        axes.set_xticks([])
        across = f"the {len(counts):,} classes, by name"
    axes.set(xlabel=across, ylabel="share of the split")


def _draw_sizes(
    histograms: Mapping[str, Histogram], unit: int, axes: Axes, colours: Colours
) -> None:
    """The first histogram filled, another as a dashed outline."""
    solid: dict[str, Any] = {"fill": True, "color": colours["fill"]}
    dashed: dict[str, Any] = {"color": colours["ink"], "ls": (0, (3, 1.5)), "lw": 1.2}
    for (name, histogram), look in zip(histograms.items(), (solid, dashed), strict=False):
        if not histogram.bars:
            _say(axes, "no photos", colours)
            return
        first, last = min(histogram.bars), max(histogram.bars)
        lower = range(first, last + 1, histogram.step)
        edges = [at / unit for at in (*lower, last + histogram.step)]
        axes.stairs([histogram.bars.get(at, 0) for at in lower], edges, label=name, **look)
        _number_axes(axes, histogram, unit, "kB" if unit == 1000 else "pixels", "photos")
    # Photos of one size give a single bar, which is not to fill the whole width.
    axes.margins(x=3 if len(lower) < 3 else 0.05)
    if len(histograms) > 1:
        if any(histogram.open_ended for histogram in histograms.values()):
            axes.set_xlabel("pixels (each last bar holds larger ones, too)")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)


def _number_axes(axes: Axes, histogram: Histogram, unit: int, across: str, up: str) -> None:
    from matplotlib.ticker import MaxNLocator

    last = max(histogram.bars, default=0)
    if histogram.open_ended:
        across += f" (the last bar: {last / unit:,g} or more)"
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlabel=across, ylabel=up)


def _say(axes: Axes, words: str, colours: Colours) -> None:
    middle: dict[str, Any] = {"ha": "center", "va": "center", "transform": axes.transAxes}
    axes.text(0.5, 0.5, words, color=colours["muted"], **middle)
    axes.set(xticks=[], yticks=[])


def _inches(panels: Mapping[str, Draw]) -> tuple[float, float]:
    """Size of each panel: on the page three stand in a row, or two."""
    return (3.2, 2.4) if len(panels) > 2 else (4.4, 2.9)


def _svg(heading: str, draw: Draw, inches: tuple[float, float]) -> Markup:
    """A panel's `<svg>` element for the page."""
    return svg(heading, inches, lambda figure: draw(figure.add_subplot(), THEME))


def _png(panels: Mapping[str, Draw]) -> bytes:
    """The panels side by side, each under its heading."""
    width, height = _inches(panels)

    def draw_all(figure: Figure) -> None:
        for place, (heading, draw) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(1, len(panels), place)
            draw(axes, _LIGHT)
            axes.set_title(heading)

    return save_figure(draw_all, (width * len(panels), height), _LIGHT, "png", "".join(panels))
