"""A run that is killed again and again, beside one that nobody disturbs: `python -m benchmarks
resume`, see `Resume` in `__main__`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.plot import INK, LINE, MUTED, PAPER
from benchmarks.training.benchmark import render
from bintally.errors import WorkError
from bintally.storage.folder import write_atomically
from bintally.terminal.plots import points, save_figure
from bintally.terminal.progress import say
from training.report.history import read_history
from training.report.results import LAST, METRICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["run"]

IMAGES, EPOCHS = 600, 16
KILLED_IN = (3, 7, 11)
"""After so many epochs, when some steps of the next one are saved."""
FIT = (
    *("--backbone", "timm:test_resnet", "--weights", "none", "--image-size", "64"),
    *("--batch-size", "16", "--lr", "0.003", "--ema", "0.9", "--dropout", "0.2"),
    *("--epochs", str(EPOCHS), "--checkpoint-every-minutes", "0.001"),
)
STARTS = (("#d99100", "o"), ("#2f7d6d", "s"), ("#8a4fa3", "^"), ("#c0392b", "D"))
"""A colour and a marker for what each start of the killed run did."""
CLOCKS = ("seconds", "images_per_s", "model_images_per_s", "data_wait_share", "machine", "resumed")
"""What no two runs have in common."""

Line = dict[str, Any]


def run(*, output: Path) -> int:
    """Trains both, and draws both; 1 where they differ in any bit of any measurement."""
    with tempfile.TemporaryDirectory(prefix="bintally-resume-") as temporary:
        scratch = Path(temporary)
        shards = render(scratch, IMAGES, (0.6, 0.4, 0.0))
        whole, killed = scratch / "whole", scratch / "killed"
        subprocess.run(_command(shards, whole), check=True)
        places = [_kill(_command(shards, killed), killed, epoch) for epoch in KILLED_IN]
        subprocess.run(_command(shards, killed), check=True)
        one, other = (read_history(folder / METRICS) for folder in (whole, killed))
    colours = {"paper": PAPER, "ink": INK, "muted": MUTED, "line": LINE}
    picture = save_figure(
        lambda figure: _draw(figure, one, other, places), (7.6, 3.0), colours, "png", "resume"
    )
    write_atomically(output, picture)
    print(output)
    if [_timeless(line) for line in one] != [_timeless(line) for line in other]:
        say("they are not the same")
        return WorkError.exit_code
    say(f"{EPOCHS} epochs, each number of them the same to the last bit")
    return 0


def _command(shards: str, folder: Path) -> list[str]:
    fit = [sys.executable, "-m", "training", "fit", *FIT, "--resume"]
    return [*fit, "--shards", shards, "--run", str(folder)]


def _kill(command: Sequence[str], folder: Path, epoch: int) -> float:
    """Kills a run when a checkpoint in the middle of an epoch is there; where that is, in epochs.

    What was done since is done again by the next start.
    """
    from bintally.counting.checkpoint import read_checkpoint

    process = subprocess.Popen(command)
    while process.poll() is None:
        time.sleep(0.05)
        if (folder / LAST).exists():
            checkpoint, _ = read_checkpoint(folder / LAST)
            if checkpoint.epoch >= epoch and checkpoint.step:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                last, _ = read_checkpoint(folder / LAST)
                say(f"killed; what it has saved is epoch {last.epoch}, step {last.step}")
                steps: int = read_history(folder / METRICS)[0]["step"]
                return last.epoch + last.step / steps
    raise WorkError(f"the run ended before it could be killed after epoch {epoch}")


def _timeless(line: Line) -> Line:
    return {name: value for name, value in line.items() if name not in CLOCKS}


def _draw(figure: Figure, whole: list[Line], killed: list[Line], places: list[float]) -> None:
    """Two curves of each run; a vertical line where the one was killed."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    panels = figure.subplots(1, 2)
    for axes, title, keys in zip(
        panels,
        ("Training loss", "Validation: exactly right"),
        (("train", "loss"), ("validation", "accuracy")),
        strict=True,
    ):
        axes.plot(*points(whole, *keys), color=LINE, linewidth=7, label="never interrupted")
        for number, (colour, marker) in enumerate(STARTS):
            mine = [x for x in killed if sum(place < x["epoch"] for place in places) == number]
            name = f"resumed, start {number + 1}" if number else "killed, start 1"
            style = {"color": colour, "marker": marker, "linewidth": 1.2, "markersize": 4.5}
            axes.plot(*points(mine, *keys), **style, label=name)
        for place in places:
            axes.axvline(place, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        axes.set_title(title)
        axes.set_xlabel("epoch; dotted: killed (SIGKILL)")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    panels[1].yaxis.set_major_formatter(PercentFormatter(1))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), handlelength=1.8)
