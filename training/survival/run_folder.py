"""What of a run lies in a place, its folder or its mirror: only that is ever written over."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bintally.counting.checkpoint import parse_checkpoint
from bintally.errors import UsageError
from bintally.storage.folder import write_atomically
from bintally.storage.place import Place
from training.report.results import BEST, EVALUATION, LAST, METRICS, REPORT, RULES_FILE, TRACKING
from training.report.trackers import read_id

__all__ = ["check_results", "check_run", "read_launchers", "read_run", "write_launchers"]

LAUNCHERS = "launchers.json"
"""What started the run, where something did that may start it again."""


def read_run(place: Place) -> dict[str, bytes]:
    """The files in a place that are called as those of a run, by name."""
    return _read(place, _IS_OURS)


def check_run(place: Place, files: Mapping[str, bytes]) -> None:
    """Raises `UsageError` where one of `read_run`'s files was written by no run."""
    for name, data in files.items():
        # Beside a checkpoint they are ours also where a crash has cut or emptied them.
        beside = name in (METRICS, RULES_FILE, TRACKING) and (LAST in files or BEST in files)
        if not beside and not _IS_OURS[name](data):
            raise UsageError(
                f"{place}/{name}: no run of ours wrote it; name another place, or move it away"
            )


def check_results(place: Place) -> None:
    """Raises `UsageError` where `evaluation.json` or `report.html` is not one of ours."""
    check_run(place, _read(place, (EVALUATION, REPORT)))


def read_launchers(run: Path) -> set[str]:
    """What started the run so far: names of `training.launch.launcher.launchers`."""
    try:
        value = json.loads((run / LAUNCHERS).read_text())
        return {str(name) for name in value["bintally launchers"]}
    except (OSError, ValueError, LookupError, TypeError):
        return set()


def write_launchers(run: Path, names: set[str]) -> None:
    """Notes what started the run, if anything did that has a name."""
    text = json.dumps({"bintally launchers": sorted(names)}) + "\n"
    if names:
        write_atomically(run / LAUNCHERS, text.encode())


def _read(place: Place, names: Iterable[str]) -> dict[str, bytes]:
    found = {}
    for name in names:
        try:
            found[name] = place.get(name)
        except FileNotFoundError:
            continue
    return found


def _is_checkpoint(data: bytes) -> bool:
    try:
        parse_checkpoint(data, Path())
    except UsageError:
        return False
    return True


def _is_history(data: bytes) -> bool:
    return data.startswith(b'{"epoch": ')


def _is_evaluation(data: bytes) -> bool:
    value = _json(data)
    return isinstance(value, dict) and {"checkpoint", "confusion_matrix"} <= value.keys()


def _is_report(data: bytes) -> bool:
    return b"<title>Bintally: " in data[:2000]


def _is_rules(data: bytes) -> bool:
    value = _json(data)
    return isinstance(value, list) and all(
        isinstance(finding, dict) and "rule" in finding for finding in value
    )


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


_IS_OURS: dict[str, Callable[[bytes], bool]] = {
    LAST: _is_checkpoint,
    BEST: _is_checkpoint,
    METRICS: _is_history,
    RULES_FILE: _is_rules,
    EVALUATION: _is_evaluation,
    REPORT: _is_report,
    TRACKING: lambda data: read_id(data) is not None,
}
