"""What the steps found, in as few lines as it takes: a row a goal, then the details."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["table"]

NOT_MEASURED = "not measured"


def table(report: Mapping[str, Any]) -> str:
    """The Markdown page of a `gpu.json`."""
    environment = report["environment"]
    libraries = ", ".join(f"{n} {v}" for n, v in environment["libraries"].items())
    parts = [
        "# A quarter of an hour on a GPU",
        f"{environment['gpu'] or 'No GPU: a rehearsal'}, {environment['num_cores']} cores, Python "
        f"{environment['python']}, {libraries}; commit {environment['commit']}, "
        f"{environment['date'][:10]}. All that was measured is in [gpu.json](gpu.json).",
        *([report["note"]] if "note" in report else []),
        "## Goals",
        _rows(("goal", "measured"), _goals(report)),
    ]
    sections = {
        "Steps": (("step", "exit code", "s", "limit, s"), _steps(report)),
        "Is it right?": (("check", "found"), _checks(report)),
        f"The loader, in one process: {_base(report.get('grid', {}).get('base', {}))}": (
            ("changed", "photos/s", "CPU s per 1,000", "cores busy", "first batch, s"),
            _variants(
                report.get("grid", {}).get("results", []),
                "cpu_s_per_1000",
                "cores_busy",
                "first_batch_s",
            ),
        ),
        "The model alone: ResNet-50, batch 256, bf16": (
            ("changed", "photos/s", "ms a step", "of them to launch", "first step, s"),
            _variants(report.get("model", []), "ms_a_step", "ms_to_launch", "first_step_s"),
        ),
        "Epoch by epoch": (("training", "validation accuracy", "images/s"), _epochs(report)),
    }
    for title, (columns, rows) in sections.items():
        if listed := [*rows]:
            parts += [f"## {title}", _rows(columns, listed)]
    return "\n\n".join(parts) + "\n"


def _rows(columns: Sequence[str], rows: Iterator[Sequence[Any]] | Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, int | float):
        return f"{value:,}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _goals(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    loader, training = _medians(report.get("loader")), _medians(report.get("training"))
    ours, reader = loader.get("ours, DALI engine"), loader.get("DALI's reader")
    yield "loader, from originals: 8,000 photos/s", _rate(ours)
    yield "no slower than DALI's own reader", _ratio(ours, reader)
    whole, model = training.get("ours, end to end"), training.get("ours, model only")
    yield "ResNet-50, batch 256, bf16, end to end: 0.97 of model only", _ratio(whole, model)
    compiled = [v for v in report.get("model", []) if v["changed"] == {"compile": True}]
    yield "model only, compiled", _rate(compiled[0].get("photos_per_s") if compiled else None)
    epochs = report.get("compiled", [])  # The first one compiles.
    yield (
        "`fit --compile`, last epoch",
        _rate(epochs[-1]["images_per_s"] if len(epochs) > 1 else None),
    )
    yield "EfficientNet-Lite0, all of it, 224 px, test split: 38% and RMSE 1.15", _accuracy(report)
    search = report.get("search")
    yield (
        "trials on one GPU",
        f"{len(search['seconds'])}, {search['concurrency']} at a time, "
        f"{statistics.median(search['seconds']):.0f} s each"
        if search
        else NOT_MEASURED,
    )
    serve = report.get("serve")
    yield (
        "serving, 32 clients",
        f"{serve['per_s_32']:,.0f} photos/s, p95 {serve['p95_ms_32']:.0f} ms"
        if serve
        else NOT_MEASURED,
    )


def _medians(report: Mapping[str, Any] | None) -> dict[str, float]:
    """Photos a second of each contestant of a benchmark's JSON."""
    contestants = report["contestants"] if report else []
    measured = {c["name"]: c.get("metrics", {}) for c in contestants}
    return {n: m["photos_per_s"]["median"] for n, m in measured.items() if "photos_per_s" in m}


def _rate(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:,.0f} photos/s"


def _ratio(value: float | None, base: float | None) -> str:
    if value is None or base is None:
        return NOT_MEASURED
    return f"{value / base:.2f} ({value:,.0f} / {base:,.0f} photos/s)"


def _accuracy(report: Mapping[str, Any]) -> str:
    seeds = report.get("accuracy", {}).get("seeds", {}).values()
    tests = [seed["test"] for seed in seeds if "test" in seed]
    if not tests:
        return NOT_MEASURED
    accuracy, rmse = ([test[name] for test in tests] for name in ("accuracy", "rmse"))
    each = ", ".join(f"{value:.1%}" for value in accuracy)
    return f"{statistics.fmean(accuracy):.1%} ({each}), RMSE {statistics.fmean(rmse):.3f}"


def _steps(report: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for step in report.get("steps", []):
        code = "no time" if step["exit_code"] is None else step["exit_code"]
        yield step["name"], code, step["seconds"], step["limit_s"]


def _checks(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, part in report.get("check", {}).items():
        for what, found in part.items() if name != "seconds" else ():
            yield f"{name}: {what}", json.dumps(found)
    for name, reason in report.get("versions", {}).get("cannot be imported", {}).items():
        yield f"cannot be imported: {name}", reason


def _variants(results: Sequence[Mapping[str, Any]], *columns: str) -> Iterator[tuple[Any, ...]]:
    for result in results:
        rate = result.get("failed") or result["photos_per_s"]
        yield _changed(result), rate, *(result.get(column) for column in columns)


def _changed(result: Mapping[str, Any]) -> str:
    return _base(result["changed"]) or "nothing"


def _base(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def _epochs(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for seed, run in report.get("accuracy", {}).get("seeds", {}).items():
        accuracies = " ".join(f"{line['accuracy']:.1%}" for line in run["validation"])
        yield f"seed {seed}", accuracies, " ".join(f"{rate:,}" for rate in run["images_per_s"])
