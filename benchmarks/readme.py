"""The README's numbers, drawn from the results: `python -m benchmarks readme [--check]`.

In the README a number that was measured or published stands between comments, which GitHub does not
show:

    <!--= loader/ours, CPU engine/photos_per_s -->1,440<!--/-->
    <!--= sharding/distant_server/share as .0% -->90%<!--/-->
    <!--= measured/small_ours_per_s ÷ measured/small_dali_per_s as .1f -->1.8<!--/-->

`benchmarks.numbers` says what names there are, and which formats. A table of a benchmark's rows
stands between `<!-- table: loader` with a line `key: title as format` for each column, then `-->`,
and `<!-- /table -->`; `<!-- table: scaling -->` is the model's.

No line may begin with such a comment: what follows it would be no part of its paragraph any more.
What else looks like a measurement (a unit, a per cent sign, a fraction, a thousands separator, a
table's cell) and is none is marked with what it is, `<!--: setting -->50%<!--/-->`, unless it is
code, a part of a link or a version. So a number that nobody measured cannot slip in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.numbers import HARDWARE, RESULTS, Numbers, UnknownNumber, form
from benchmarks.page import PAGE, page
from benchmarks.scaling import read_numbers, to_markdown
from bintally.storage.folder import write_atomically
from bintally.terminal.progress import say

__all__ = ["README", "Draft", "draw", "run", "untraced"]

README = Path(__file__).parent.parent / "README.md"

TRACED = re.compile(
    r"(?P<head><!--= (?P<name>.*?)(?: as (?P<spec>\S+))? -->)(?P<shown>.*?)(?P<foot><!--/-->)",
    re.DOTALL,
)
EXPLAINED = re.compile(r"<!--: (?P<what>.*?) -->.*?<!--/-->", re.DOTALL)
TABLE = re.compile(
    r"(?P<head><!-- table: (?P<name>\S+)(?P<columns>.*?)-->\n)"
    r"(?P<shown>.*?)(?P<foot><!-- /table -->)",
    re.DOTALL,
)
OTHERWISE_FINE = (
    re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE),
    re.compile(r"`[^`]*`"),
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"\]\([^)]*\)"),
    re.compile(r"\b(?:Python|Apache|BY-NC-SA|PyTorch)[ -]\d+(?:\.\d+)*\+?"),
)
UNITS = (
    r"%|×(?!\d)|(?:photos|images|requests|times|seconds?|minutes?|hours?|days|bytes|s|ms|min|h|"
    r"kB|MB|GB|TB|KiB|MiB|GiB|Gbit/s)\b|of \d|\*{0,2}\s*\|"
)
MEASUREMENT = re.compile(
    rf"(?<![\w.,×/-])(?:\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?|\d+\.\d+|\d+(?=\s*(?:{UNITS})))(?![\w.]*\w)"
)


@dataclass
class Draft:
    """A README with its numbers as the results have them."""

    text: str
    stale: list[str] = field(default_factory=list)
    """What was otherwise before, a line of explanation each."""
    unknown: list[str] = field(default_factory=list)
    """What no results file has."""


def draw(text: str, numbers: Numbers) -> Draft:
    """Fills in every number and table that the text names."""
    draft = Draft(text)

    def fill(pattern: re.Pattern[str], new: Callable[[re.Match[str]], str]) -> None:
        before = draft.text

        def replaced(match: re.Match[str]) -> str:
            where = f"line {before.count(chr(10), 0, match.start()) + 1}"
            try:
                shown = new(match)
            except UnknownNumber as error:
                draft.unknown.append(f"{where}: {error}")
                return match[0]
            if match["shown"] != shown:
                is_now = "another table" if "\n" in shown else f"{shown}, not {match['shown']}"
                draft.stale.append(f"{where}: {match['name']} is {is_now}")
            return f"{match['head']}{shown}{match['foot']}"

        draft.text = pattern.sub(replaced, before)

    fill(TABLE, lambda match: _table(match, numbers))
    fill(TRACED, lambda match: form(numbers.get(match["name"]), match["spec"] or ""))
    return draft


def _table(match: re.Match[str], numbers: Numbers) -> str:
    name = match["name"]
    if name == "scaling":
        return to_markdown(numbers) + "\n"
    columns = [_column(line) for line in match["columns"].strip().splitlines()]
    benchmark: Mapping[str, Any] = numbers.find(name)
    rows = sorted(benchmark["contestants"], key=lambda row: _rank(row, columns[0].key))
    lines = [
        f"| {name} | {' | '.join(column.title for column in columns)} |",
        "|---|" + "---:|" * len(columns),
    ]
    for row in rows:
        shown = {"ours": f"**{row['name']}**", "limit": f"*{row['name']}*"}
        cells = [_cell(row, column) for column in columns]
        lines.append(f"| {shown.get(row['role'], row['name'])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Column:
    key: str
    title: str
    spec: str


def _column(line: str) -> _Column:
    key, colon, rest = line.partition(": ")
    title, _, spec = rest.partition(" as ")
    if not colon:
        raise UnknownNumber(f"{line!r}: a table's column is `key: title` or `key: title as format`")
    return _Column(key.strip(), title.strip(), spec.strip())


def _rank(row: Mapping[str, Any], key: str) -> tuple[bool, float]:
    """The largest first; limits, which do less than the others, at the end."""
    metric = row.get("metrics", {}).get(key)
    return row["role"] == "limit", -metric["median"] if metric else 0.0


def _cell(row: Mapping[str, Any], column: _Column) -> str:
    found = row.get(column.key) or row.get("metrics", {}).get(column.key, {}).get("median")
    return "–" if found is None else form(found, column.spec)


def untraced(text: str) -> Iterator[str]:
    """A line for each number that looks measured and names no source, or that breaks its line."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith(("<!--=", "<!--:")):
            yield f"line {number}: begins with a comment, which ends the paragraph"

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", "\x00", match[0])

    for pattern in (*OTHERWISE_FINE[:2], TABLE, TRACED, EXPLAINED):
        text = pattern.sub(blank, text)
    for pattern in OTHERWISE_FINE:
        text = pattern.sub(blank, text)
    for match in MEASUREMENT.finditer(text):
        number = text.count("\n", 0, match.start()) + 1
        around = text[match.start() : match.end() + 24].replace("\x00", "").split("\n")[0]
        yield f"line {number}: {around.strip()!r} names no results file"


def run(*, check: bool, path: Path = README, folder: Path = RESULTS / HARDWARE) -> int:
    """Rewrites the README and the results' page, or says what it would change.

    1 where a number has no source, and with `check` where anything is stale.
    """
    text = path.read_text()
    draft = draw(text, read_numbers())
    wrong = [f"{path.name}, {line}" for line in (*draft.unknown, *untraced(text))]
    stale = [f"{path.name}, {line}" for line in draft.stale]
    renewed = page(folder, {})
    if not (folder / PAGE).exists() or (folder / PAGE).read_text() != renewed:
        stale.append(f"{folder / PAGE}: the results beside it are others")
    for line in (*wrong, *(stale if check else ())):
        say(line)
    if check:
        return 1 if wrong or stale else 0
    write_atomically(path, draft.text.encode())
    write_atomically(folder / PAGE, renewed.encode())
    say(f"{len(stale)} places are new" if stale else "all was as the results have it")
    return 1 if wrong else 0
