"""What a search notes of itself in its folder: what is searched, and what was settled since."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bintally.dataset.manifest import Dataset
from bintally.errors import UsageError
from bintally.storage.folder import write_atomically
from tuning.config import SEARCH_FORMAT, SearchConfig
from tuning.space import Space

__all__ = ["RAY", "begin", "note", "noted"]

SEARCH = "search.json"
RAY = "ray"


def begin(config: SearchConfig, space: Space, dataset: Dataset, folder: Path) -> None:
    """Readies the folder. Raises `UsageError` where another search lies in it."""
    mine = config.to_dict(space) | {"dataset": dataset.sha256}
    file = folder / SEARCH
    if not file.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"--output {folder}: not empty, and holds no search; name another")
        write_atomically(file, (json.dumps(mine, indent=1) + "\n").encode())
        return
    if not config.resume:
        raise UsageError(
            f"--output {folder}: holds a search; --resume goes on with it, or name another folder"
        )
    theirs = json.loads(file.read_text())
    if theirs.get("format") != SEARCH_FORMAT:
        raise UsageError(
            f"--resume: {folder} was searched by another version, whose trials were drawn and "
            f"compared otherwise; name another --output, and --warm-start {folder} to learn from it"
        )
    for name, value in json.loads(json.dumps(mine)).items():
        if theirs.get(name) != value:
            raise UsageError(
                f"--resume: {folder} was searched with {name} {theirs.get(name)}, not {value}; "
                "resume with the same, or name another --output"
            )
    # What Ray noted of the trials that were not over is of no use to those begun again.
    shutil.rmtree(folder / RAY, ignore_errors=True)


def noted(folder: Path, name: str, value: int) -> int:
    """A number noted in the search's folder; `value`, which is noted, if there was none."""
    there: int | None = json.loads((folder / SEARCH).read_text()).get(name)
    if there is None:
        note(folder, name, value)
        return value
    return there


def note(folder: Path, name: str, value: int) -> None:
    """Notes a number in the search's folder."""
    notes = json.loads((folder / SEARCH).read_text()) | {name: value}
    write_atomically(folder / SEARCH, (json.dumps(notes, indent=1) + "\n").encode())
