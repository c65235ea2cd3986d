"""The benchmarks: `python -m benchmarks loader`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bintally.command import run_command

Output = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
Shards = Annotated[str | None, tyro.conf.arg(metavar="PLACE")]


@dataclass
class Loader:
    """Photos a second, from shards on disk to batches for the model.

    Ours beside torchvision's ImageFolder, webdataset and DALI's own reader, all doing the same
    work, and beside the limit: the same work with no loader around it.
    """

    quick: bool = False
    """Few photos and rounds: shows that it works, and roughly how fast."""
    output: Output = None
    """Folder for loader.json, .md, .png and .svg; else one of benchmarks/results, by hardware."""
    shards: Shards = None
    """A dataset whose train split is read: a folder that `python -m sharding build` made. Else one
    is rendered and removed again."""

    def run(self) -> int:
        from benchmarks.loader import run

        return run(quick=self.quick, output=self.output, shards=self.shards)


COMMANDS: dict[str, Callable[..., Loader]] = {"loader": Loader}


def main() -> int:
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="python -m benchmarks",
        description="Measures the stages beside their peers.",
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )
    return run_command(command.run)


if __name__ == "__main__":
    sys.exit(main())
