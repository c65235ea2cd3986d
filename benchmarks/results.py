"""What a benchmark leaves behind: `<name>.json` with every round, and `<name>.md` and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import Environment
from benchmarks.measure import Result
from bintally.errors import UsageError
from bintally.storage.folder import write_atomically

__all__ = ["Metric", "Report", "results_folder"]

NOTHING = "–"


@dataclass(frozen=True)
class Metric:
    """A column."""

    key: str
    title: str
    """Unit included."""
    num_decimals: int = 0

    def format(self, value: float) -> str:
        return f"{value:,.{self.num_decimals}f}"


@dataclass(frozen=True)
class Report:
    """A benchmark's outcome. The first metric is the one that is compared."""

    name: str
    title: str
    metrics: Sequence[Metric]
    workload: Mapping[str, Any]
    """What every contestant did, for the reader of the results."""
    notes: Sequence[str]
    """How to read the columns."""
    num_rounds: int
    quick: bool
    environment: Environment
    results: Sequence[Result]

    @property
    def baseline(self) -> Result:
        """The peer that the others are compared with: the first one."""
        return next(r for r in self.results if r.contestant.role == "peer")

    def ratio(self, result: Result) -> float | None:
        """How many times the baseline's median a median is; None where either has none."""
        own, base = (r.spread(self.metrics[0].key) for r in (result, self.baseline))
        return own.median / base.median if own and base else None

    @property
    def drawn(self) -> Report:
        """What the plot shows."""
        return self

    @property
    def failed(self) -> bool:
        """Whether something went wrong."""
        return any(result.error for result in self.results)

    def write(self, folder: Path) -> None:
        """Writes the JSON and the Markdown."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"
        write_atomically(folder / f"{self.name}.json", text.encode())
        write_atomically(folder / f"{self.name}.md", self.to_markdown().encode())

    def summary(self) -> str:
        """What is printed."""
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """As the JSON holds it."""
        return {
            "benchmark": self.name,
            "quick": self.quick,
            "rounds": self.num_rounds,
            "workload": dict(self.workload),
            "metrics": {metric.key: metric.title for metric in self.metrics},
            "baseline": self.baseline.contestant.name,
            "contestants": [self._entry(result) for result in self.results],
            "environment": self.environment.to_dict(),
        }

    def _entry(self, result: Result) -> dict[str, Any]:
        contestant = result.contestant
        entry: dict[str, Any] = {
            "name": contestant.name,
            "role": contestant.role,
            "settings": dict(contestant.settings),
        }
        if result.error is not None:
            return {**entry, "error": result.error}
        spreads = {metric.key: result.spread(metric.key) for metric in self.metrics}
        return {
            **entry,
            "ratio": self.ratio(result),
            "metrics": {key: asdict(spread) for key, spread in spreads.items() if spread},
            "rounds": [dict(measured) for measured in result.rounds],
        }

    def table(self) -> str:
        """The Markdown table: a row for each contestant."""
        first, *rest = self.metrics
        columns = [first.title, f"× {self.baseline.contestant.name}", *(m.title for m in rest)]
        lines = [
            f"| {self.name} | {' | '.join(columns)} |",
            "|---|" + "---:|" * len(columns),
        ]
        lines += [f"| {' | '.join(self._row(result))} |" for result in self.results]
        return "\n".join(lines)

    def _row(self, result: Result) -> list[str]:
        first, *rest = self.metrics
        name = result.contestant.name
        name = {"ours": f"**{name}**", "limit": f"*{name}*"}.get(result.contestant.role, name)
        if result.error is not None:
            reason = result.error.replace("|", "\\|").replace("\n", " ")
            return [name, f"error: {reason}", *[NOTHING] * len(self.metrics)]
        ratio = self.ratio(result)
        cells = [self._cell(result, first), NOTHING if ratio is None else f"{ratio:.2f}"]
        return [name, *cells, *(self._cell(result, metric) for metric in rest)]

    @staticmethod
    def _cell(result: Result, metric: Metric) -> str:
        spread = result.spread(metric.key)
        if spread is None:
            return NOTHING
        low, high = metric.format(spread.minimum), metric.format(spread.maximum)
        return f"{metric.format(spread.median)} ({low}–{high})"

    def to_markdown(self) -> str:
        """The page: the table, how to read it, and what it was measured with."""
        rounds = f"Median of {self.num_rounds} interleaved rounds (lowest–highest)."
        quick = " **A quick run: rough numbers.**" if self.quick else ""
        workload = [f"- {_words(key)}: {_text(value)}" for key, value in self.workload.items()]
        settings = [
            f"- {result.contestant.name}: "
            + "; ".join(f"{_words(k)}: {_text(v)}" for k, v in result.contestant.settings.items())
            for result in self.results
        ]
        parts = [
            f"# {self.title}",
            rounds + quick,
            self.table(),
            "\n".join(f"- {note}" for note in self.notes),
            "## The same work for all",
            "\n".join(workload),
            "## Settings",
            "\n".join(settings),
            "## Where it ran",
            self.environment.to_markdown(),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"


def results_folder(output: Path | None, environment: Environment, quick: bool) -> Path:
    """Where results go: to the place that the user names, or to one of the hardware's, where quick
    ones never replace real ones.

    Raises `UsageError` for a place that is no folder.
    """
    suffix = "-quick" if quick else ""
    folder = output or Path(__file__).parent / "results" / f"{environment.hardware}{suffix}"
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder}: not a folder")
    return folder


def _words(key: str) -> str:
    return key.replace("_", " ")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
