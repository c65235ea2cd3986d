"""The commands of stage 3: `bintally search|submit`, or `python -m tuning …`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from bintally.errors import UsageError
from bintally.terminal.command import main
from tuning.config import SearchConfig


@dataclass(frozen=True)
class Search(SearchConfig):
    """Try many trainings on a Ray cluster, and train the best.

    A frozen backbone sees every photo once; its trials are heads, and take seconds. With
    --trainable all each trial is a training of its own, on a share of a GPU, one, or several.
    """

    def execute(self) -> int:
        from tuning.results import CSV, SEARCH_REPORT, WINNER
        from tuning.search import search

        config = SearchConfig(**{f.name: getattr(self, f.name) for f in fields(SearchConfig)})
        summary = search(config)
        best, metric = summary["best"], summary["metric"]
        settings = ", ".join(f"{name} {value}" for name, value in best["parameters"].items())
        won = summary["chosen"]["finalists"][0]
        over = ""
        if (error := won["standard_error"]) is not None:
            over = f" ± {error:.4f} over {len(won['values'])} seeds"
        if (chance := summary["chosen"]["sampling_error"]) is not None:
            over += f", and ± {chance:.4f} by the chance of {summary['chosen']['samples']:,} photos"
        print(
            f"best: trial {best['number']}, validation {metric} {won['mean']:.4f}{over}: {settings}"
        )
        if (test := summary["winner"]["test"]) is not None:
            always = test["baseline"]
            # Where classes are names, there is none.
            ours, theirs = (
                "" if of["rmse"] is None else f", {head}{of['rmse']:.3f}"
                for of, head in ((test, "RMSE "), (always, ""))
            )
            print(
                f"test, {test['samples']:,} photos seen once: accuracy {test['accuracy']:.2%}{ours}"
                f" (always {always['count']}: {always['accuracy']:.2%}{theirs})"
            )
        if (overhead := summary["overhead_s"]) is not None:
            print(f"overhead: {overhead:.2f} s a trial beside its training")
        print(f"winner: {self.output / WINNER}")
        print(f"trials: {self.output / CSV}")
        print(f"report: {self.output / SEARCH_REPORT}")
        return 0


@dataclass(frozen=True)
class Submit:
    """Run `search …` on a Ray cluster, through its job API.

    bintally submit --address http://HEAD:8265 -- search --shards s3://… --output …

    The code travels with the job; data, credentials and the rest of this folder do not. Its log is
    shown here, and its exit code is this command's. Ctrl-C leaves the job alone.
    """

    address: str
    """Of the cluster's dashboard: http://HEAD:8265."""
    words: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="-- search …")
    ] = ()
    """The command, after two dashes."""
    stop: Annotated[str | None, tyro.conf.arg(metavar="JOB")] = None
    """Stop this job instead."""
    file: Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(metavar="PATH")] = ()
    """A file that travels beside the code, under its name: a --space, or weights."""
    env: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME")] = ()
    """A variable of this environment that the job gets too; no other does."""
    requirements: Path | None = None
    """constraints.txt, say: the cluster makes an environment with it first. Else its machines have
    what bintally needs."""

    def execute(self) -> int:
        from tuning.submit import stop, submit

        if (self.stop is None) == (not self.words):
            raise UsageError("name a command after two dashes (-- search …), or --stop a job")
        if self.stop is not None:
            stop(self.address, self.stop)
            return 0
        if missing := [name for name in self.env if name not in os.environ]:
            raise UsageError(f"--env {missing[0]}: is not set here")
        return submit(
            self.address,
            self.words,
            files=self.file,
            environment={name: os.environ[name] for name in self.env},
            requirements=self.requirements,
        )


COMMANDS = Search | Submit

if __name__ == "__main__":
    sys.exit(
        main(
            COMMANDS,
            sys.argv[1:],
            prog="python -m tuning",
            description="Stage 3: many trainings, one winner.",
        )
    )
