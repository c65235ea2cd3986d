"""One page of all that was measured on a kind of hardware: `index.md` beside the results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.numbers import form

__all__ = ["PAGE", "page", "summary"]

PAGE = "index.md"
NOT_INSTALLED = "not installed"
STAGES = ("sharding", "loader", "training", "tuning", "serving")
"""In the order of a photo's way; others come after."""


def page(folder: Path, left_out: Mapping[str, str]) -> str:
    """Tables and plots of all results in a folder; what was left out, by its name, and why."""
    parts = [f"# Measured on {folder.name}"]
    results = _results(folder)
    for name, result in results.items():
        if name not in left_out:
            parts += _benchmark(folder, name, result)
    for name, reason in left_out.items():
        parts += [f"## {name}", f"Left out: {reason}"]
    by_hand = folder / "measured.json"
    if by_hand.is_file():
        parts += ["## Measured by hand", _by_hand(json.loads(by_hand.read_text()))]
    return "\n\n".join(parts) + "\n"


def _results(folder: Path) -> dict[str, dict[str, Any]]:
    """What benchmarks wrote, by their names."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    names = sorted(found, key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES))
    return {name: found[name] for name in names if "benchmark" in found[name]}


def _benchmark(folder: Path, name: str, result: Mapping[str, Any]) -> list[str]:
    # Every page of a benchmark begins with its title, rounds and table, in paragraphs of their own.
    title, *paragraphs = (folder / f"{name}.md").read_text().split("\n\n")
    shown = [f"## {title.removeprefix('# ')}", *paragraphs[:2]]
    if (folder / f"{name}.svg").is_file():
        shown.append(f"![{name}]({name}.svg)")
    libraries = result["environment"]["libraries"]
    missing = [library for library, version in libraries.items() if version == NOT_INSTALLED]
    if missing:
        shown.append(f"Not installed here, and so left out: {', '.join(missing)}.")
    shown.append(f"[How to read it, settings, versions]({name}.md), [every round]({name}.json)")
    return shown


def _by_hand(entries: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["| what | value | unit | how |", "|---|---:|---|---|"]
    for name, entry in entries.items():
        value = f"{entry['value']:,}"
        lines.append(f"| {name} | {value} | {entry['unit']} | {entry['how']} |")
    return "\n".join(lines)


def summary(folder: Path) -> str:
    """A short table: of every contestant, the number that is compared."""
    rows = []
    for name, result in _results(folder).items():
        key, title = next(iter(result["metrics"].items()))
        for entry in result["contestants"]:
            metric = entry.get("metrics", {}).get(key)
            shown = form(metric["median"]) if metric else entry.get("error", "–")
            rows.append((name, entry["name"], shown, title))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    return "\n".join(
        f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}"
        for row in rows
    )
