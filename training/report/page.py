"""The report of a training run: one HTML page that needs nothing beside itself.

``render_run_report`` is pure: it takes what a run left behind (its configuration, the lines of
``metrics.jsonl``, an evaluation, some photos) and returns the page's text, the same for the same
input. The page's words and looks are in ``report.html.j2``; the numbers and plots come from here.
"""

import base64
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bintally.dataset.labels import Classes, are_counts
from bintally.terminal.pages import duration, fixed, percent, render_page
from bintally.terminal.plots import MUTED, Plot, line_plot, points, svg

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

__all__ = ["Example", "render_run_report"]

MAX_LABELLED_CLASSES = 20
"""Above this many classes the confusion matrix is a picture without numbers."""


@dataclass(frozen=True)
class Example:
    """A photo with its answer."""

    id: str
    photo: bytes  # JPEG
    count: int | str  # the true count, or name
    predicted: int | str
    probability: float  # of the predicted one


def render_run_report(
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
    filters: dict[str, Callable[..., object]] = {
        "data_url": _data_url, "duration": duration, "fixed": fixed, "percent": percent,
        "rate": _rate, "words": _words,
    }  # fmt: skip
    classes = list(evaluation["classes"])
    matrix = evaluation["confusion_matrix"]
    labelled = len(classes) <= MAX_LABELLED_CLASSES
    return render_page(
        "training.report",
        filters,
        title=title,
        config=config,
        evaluation=evaluation,
        examples=examples,
        findings=findings,
        curves=_curves(history, evaluation["checkpoint"]["epoch"]) if history else [],
        resumed=any(line.get("resumed") for line in history),
        pace=_pace(history) if history else None,
        shares=_row_shares(matrix) if labelled else None,
        heatmap=None if labelled else _heatmap(classes, _row_shares(matrix)),
    )


def _row_shares(matrix: Sequence[Sequence[int]]) -> list[list[float]]:
    return [[value / max(1, sum(row)) for value in row] for row in matrix]


def _curves(history: Sequence[Mapping[str, Any]], checkpoint_epoch: int) -> list[Plot]:
    splits = [name for name in ("train", "validation") if any(line.get(name) for line in history)]
    loss = {split: points(history, split, "loss") for split in splits}
    accuracy = {split: points(history, split, "accuracy") for split in splits}
    lr = {"learning rate": points(history, "lr")}
    marks: dict[str, Any] = {
        "mark": checkpoint_epoch,
        "ticks": [line["epoch"] for line in history if line.get("resumed")],
    }
    return [
        line_plot("Loss", loss, **marks),
        line_plot("Exactly right", accuracy, as_percent=True, **marks),
        line_plot("Learning rate", lr, from_zero=True),
    ]


def _pace(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the time went, as numbers and as plots."""
    seconds = sum(line["seconds"] for line in history)
    waited = sum(line["seconds"] * line["data_wait_share"] for line in history)
    speed = {"images/s": points(history, "images_per_s")}
    wait = {"waiting for data": points(history, "data_wait_share")}
    return {
        "epochs": len(history),
        "seconds": seconds,
        "images_per_s": _median(history, "images_per_s"),
        "model_images_per_s": _median(history, "model_images_per_s"),
        "data_wait_share": waited / seconds if seconds else 0.0,
        "plots": [
            line_plot("Images per second", speed, from_zero=True),
            line_plot("Time spent waiting for data", wait, from_zero=True, as_percent=True),
        ],
    }


def _median(history: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [line[name] for line in history if line.get(name) is not None]
    return statistics.median(values) if values else None


def _heatmap(classes: Classes, shares: Sequence[Sequence[float]]) -> "Markup":
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
        axes.plot([0, last], [0, last], color=MUTED, lw=0.6, linestyle=dots, zorder=3)
        axes.set(xlabel="answered", ylabel=f"true {kind}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=10, integer=True))
            name = FuncFormatter(lambda at, _: str(classes[int(at)]) if 0 <= at <= last else "")
            axis.set_major_formatter(name)
        axes.grid(visible=True, axis="both")

    kind = "count" if are_counts(classes) else "class"
    right = [row[place] for place, row in enumerate(shares) if sum(row)]
    mean = statistics.fmean(right) if right else 0.0
    alt = (
        f"Confusion matrix of {len(classes)} classes, true {kind} down and answer across; "
        f"on average {percent(mean)} of a row lies on the diagonal."
    )
    return svg(alt, (5.0, 4.8), draw)


def _words(value: object) -> str:
    nested = isinstance(value, Mapping | list | tuple)
    return json.dumps(value, default=str, ensure_ascii=False) if nested else str(value)


def _data_url(photo: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(photo).decode("ascii")


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"
