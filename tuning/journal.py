"""Notes of a search as it goes on: a file for each trial that is over, a table to watch, and
TensorBoard's events."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from bintally.terminal.progress import Progress, say
from training.metrics import is_better
from tuning.results import CSV, TENSORBOARD, Trial, trial_name, write_csv, write_trial

__all__ = ["Journal"]

TABLE_S = 1.0
"""The table of all trials is written anew so often: of a thousand it takes a moment."""


class Journal:
    """Writes down what is over."""

    def __init__(
        self, folder: Path, metric: str, known: Sequence[Trial], progress: Progress
    ) -> None:
        self._folder, self._metric, self._progress = folder, metric, progress
        self._known = {(trial.number, trial.repeat): trial for trial in known}
        self._trials: dict[tuple[int, int], Trial] = {}
        self._names: list[str] = []
        self._best: float | None = None
        self._written = 0.0

    def write(self, trial: Trial) -> None:
        """Notes a trial, or a repeat, that is over."""
        self._trials[trial.number, trial.repeat] = trial
        if self._known.get((trial.number, trial.repeat)) != trial:
            write_trial(self._folder, trial)
            self._write_events(trial)
            self._show(trial)
        if time.monotonic() - self._written > TABLE_S:
            self.write_table()
        self._progress.update()

    def write_table(self) -> None:
        """Writes `results.csv`."""
        write_csv(self._folder / CSV, [trial for _, trial in sorted(self._trials.items())])
        self._written = time.monotonic()

    def _write_events(self, trial: Trial) -> None:
        from tensorboardX import SummaryWriter

        folder = self._folder / TENSORBOARD / trial_name(trial.number, trial.repeat)
        with SummaryWriter(str(folder)) as events:
            for line in trial.history:
                for split in ("train", "validation"):
                    for name, value in line[split].items():
                        if isinstance(value, int | float) and name != "samples":
                            events.add_scalar(f"{split}/{name}", value, line["epoch"])

    def _show(self, trial: Trial) -> None:
        """A row of the table, beneath its head."""
        if not self._names:
            self._names = [*trial.parameters]
            head = "".join(f"{name[:14]:>15}" for name in self._names)
            say(f"{'trial':>6}{head}{self._metric:>12}{'epochs':>8}{'s':>7}")
        cells = "".join(f"{_short(trial.parameters.get(name)):>15}" for name in self._names)
        row = f"{trial_name(trial.number, trial.repeat).lstrip('0') or '0':>6}{cells}"
        if trial.value is None:
            say(f"{row}  {trial.status}: {trial.reason}")
            return
        mark = "" if trial.status == "finished" else f"  {trial.status}"
        if self._best is None or is_better(self._metric, trial.value, self._best):
            self._best, mark = trial.value, "  best so far"
        say(f"{row}{trial.value:>12.4f}{len(trial.history):>8}{trial.seconds:>7.1f}{mark}")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:14]
