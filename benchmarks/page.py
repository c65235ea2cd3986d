"""One page of all that was measured on a kind of hardware: `index.md` beside the results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.numbers import form
from bintally.places import write_atomically

__all__ = ["page", "summary", "write_page"]

NOT_INSTALLED = "not installed"


def write_page(folder: Path, names: Iterable[str], left_out: Mapping[str, str]) -> Path:
    """Writes the page of the benchmarks named whose results lie in the folder; its path."""
    path = folder / "index.md"
    write_atomically(path, page(folder, names, left_out).encode())
    return path


def page(folder: Path, names: Iterable[str], left_out: Mapping[str, str]) -> str:
    """The page: tables and plots; what was left out, by its name, and why."""
    parts = [f"# Measured on {folder.name}"]
    for name in names:
        file = folder / f"{name}.json"
        if name in left_out:
            parts += [f"## {name}", f"Left out: {left_out[name]}"]
        elif file.is_file():
            parts += _benchmark(folder, name, json.loads(file.read_text()))
    by_hand = folder / "measured.json"
    if by_hand.is_file():
        parts += ["## Measured by hand", _by_hand(json.loads(by_hand.read_text()))]
    return "\n\n".join(parts) + "\n"


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


def summary(folder: Path, names: Iterable[str]) -> str:
    """A short table: of every contestant, the number that is compared."""
    rows = []
    for name in names:
        file = folder / f"{name}.json"
        if file.is_file():
            result = json.loads(file.read_text())
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
