"""The command `bintally`: all commands of all stages. `python -m bintally` is the same."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import make_dataclass
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from operator import or_
from pathlib import Path
from typing import get_args

from bintally.errors import UsageError
from bintally.terminal.command import main, run_command

STAGES = {
    "sharding": ("synthesize", "build", "adopt", "verify", "report"),
    "training": ("fit", "evaluate", "predict", "export"),
    "tuning": ("search", "submit"),
    "serving": ("serve",),
}
"""The stages, and their commands: only the one that is asked for is imported."""
HOME = Path(__file__).resolve().parent.parent
"""Where the stages lie, beside the library."""


def bintally() -> int:
    """Runs the command line of this process; returns its exit code."""
    if code := run_command(find_stages):
        return code
    words = sys.argv[1:]
    asked = [stage for stage, commands in STAGES.items() if words and words[0] in commands]
    modules = [import_module(f"{stage}.__main__") for stage in asked or STAGES]
    if asked == ["serving"]:
        return main(modules[0].COMMANDS, words[1:], prog="bintally serve")
    commands = [c for m in modules for c in get_args(m.COMMANDS) or [m.COMMANDS]]
    if words in ([], ["--help"], ["-h"]):
        commands = [*map(_without_options, commands)]
    return main(
        reduce(or_, commands),
        words,
        prog="bintally",
        description="Counts the items in warehouse bins from photos: a bucket becomes shards, "
        "shards become a model, the model counts.",
        rewrite=getattr(modules[0], "rewrite", list),
    )


def _without_options(command: type) -> type:
    """A command of that name and description. To read what options all of them have takes longer
    than a list of their names may."""
    return make_dataclass(command.__name__, (), namespace={"__doc__": command.__doc__})


def find_stages() -> None:
    """Sees to it that the stages' names mean ours, here and in the processes that this one starts.

    Other people have folders called `training`, too. So nothing is looked for in the current one,
    where `python -m` and `python -c` begin. Raises `UsageError` where PYTHONPATH leads to such.
    """
    with suppress(FileNotFoundError):  # Of a folder that was removed, in which nothing is found.
        if Path.cwd() != HOME:
            os.environ["PYTHONSAFEPATH"] = "1"
            if sys.path[0] in ("", str(Path.cwd())):
                del sys.path[0]
    for stage in STAGES:
        if (folder := _folder(stage)) != HOME / stage:
            raise UsageError(
                f"the package {stage} is found in {folder}, and not in {HOME}, beside bintally; "
                f"take {folder.parent} out of PYTHONPATH"
            )


def _folder(stage: str) -> Path:
    """Where an import would find a stage; a module's file where it would find no package."""
    spec = find_spec(stage)
    assert spec is not None
    return Path((spec.submodule_search_locations or [str(spec.origin)])[0]).resolve()


if __name__ == "__main__":
    sys.exit(bintally())
