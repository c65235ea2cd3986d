"""The benchmarks: `python -m benchmarks loader`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from bintally.errors import UsageError
from bintally.terminal.command import run_command

Output = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
Shards = Annotated[str | None, tyro.conf.arg(metavar="PLACE")]
Interpreter = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]


@dataclass
class Loader:
    """Photos a second, from shards on disk to batches for the model.

    Ours beside torchvision's ImageFolder, webdataset and DALI's own reader, all doing the same
    work, and beside the limit: the same work with no loader around it. Of litdata,
    mosaicml-streaming, spdl, tensorflow-cpu and ffcv, those that are installed here run too
    (benchmarks/peers.txt). Each is told with the emulated H100s that it feeds, as MLPerf Storage
    counts them.
    """

    quick: bool = False
    """Few photos and rounds: shows that it works, and roughly how fast."""
    output: Output = None
    """Folder for loader.json, .md, .png and .svg; else one of benchmarks/results, by hardware."""
    shards: Shards = None
    """A dataset whose train split is read: a folder that `bintally build` made. Else one
    is rendered and removed again."""

    def run(self) -> int:
        from benchmarks.loader.benchmark import run

        return run(quick=self.quick, output=self.output, shards=self.shards)


@dataclass
class Sharding:
    """Photos a second, from a local S3 server (nginx) to shards in a folder.

    Ours beside img2dataset and the loops that people write around webdataset's and Mosaic's
    writers; then ours from a server that is 100 ms away, plans of datasets of ABID's size and of 10
    million photos, and the process that drives a build of ABID's size (ten minutes by itself).
    """

    quick: bool = False
    """Few photos and rounds: shows that it works, and roughly how fast."""
    output: Output = None
    """Folder for sharding.json, .md, .png and .svg; else one of benchmarks/results, by hardware."""
    peers_python: Interpreter = None
    """Interpreter of an environment with benchmarks/peers.txt; peers that it lacks are left out."""

    def run(self) -> int:
        from benchmarks.sharding.benchmark import run

        return run(quick=self.quick, output=self.output, peers_python=self.peers_python)


@dataclass
class Training:
    """Photos a second, from photos on disk to steps of the optimiser.

    Ours end to end, with its loader alone and its model alone, beside loops written after timm's
    train script and torchvision's reference, on the same photos.
    """

    quick: bool = False
    """Few photos and rounds: shows that it works, and roughly how fast."""
    output: Output = None
    """Folder for training.json, .md, .png and .svg; else one of benchmarks/results, by hardware."""
    shards: Shards = None
    """A dataset whose train split is trained on. Else one is rendered and removed again."""

    def run(self) -> int:
        from benchmarks.training.benchmark import run

        return run(quick=self.quick, output=self.output, shards=self.shards)


@dataclass
class Tuning:
    """Trials an hour, from shards to heads of a frozen backbone.

    Our search, features included, with rungs and without, and with 1,000 trials, beside the plain
    way with Ray Tune, in which each trial reads an ImageFolder of its own; that one is measured for
    an epoch and extrapolated.
    """

    quick: bool = False
    """Few photos and trials: shows that it works, and roughly how fast."""
    output: Output = None
    """Folder for tuning.json, .md, .png and .svg; else one of benchmarks/results, by hardware."""
    shards: Shards = None
    """A dataset that is searched on. Else one is rendered and removed again."""
    weights: Annotated[str, tyro.conf.arg(metavar="FILE")] = "none"
    """Of EfficientNet-Lite0 for timm: how fast it computes does not depend on them."""

    def run(self) -> int:
        from benchmarks.tuning.benchmark import run

        return run(quick=self.quick, output=self.output, shards=self.shards, weights=self.weights)


@dataclass
class Serving:
    """Photos a second and latencies, from clients over HTTP to answers.

    Ours beside FastAPI and PyTorch one request at a time, and beside the original's handler, at 1,
    8 and 32 clients.
    """

    quick: bool = False
    """Few seconds and rounds: shows that it works, and roughly how fast."""
    output: Output = None
    """Folder for serving.json, .md, .png and .svg; else one of benchmarks/results, by hardware."""
    checkpoint: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The model that is served; else EfficientNet-Lite0 with random weights."""

    def run(self) -> int:
        from benchmarks.serving.benchmark import run

        return run(quick=self.quick, output=self.output, checkpoint=self.checkpoint)


@dataclass
class Everything:
    """All of these in turn, and a page of what they measured: `index.md` beside the results.

    Peers that are not installed here are left out, and so is a benchmark whose tools are missing;
    the page says which.
    """

    quick: bool = False
    """Few photos and rounds: shows that it works, and roughly how fast."""
    output: Output = None
    """Folder for all files; else one of benchmarks/results, by hardware."""
    peers_python: Interpreter = None
    """Interpreter of an environment with benchmarks/peers.txt, for `sharding`."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = ()
    """These benchmarks, instead of all."""

    def run(self) -> int:
        from benchmarks.environment import read_environment
        from benchmarks.everything import run
        from benchmarks.results import results_folder

        unknown = {*self.only} - {*BENCHMARKS}
        if unknown:
            raise UsageError(f"--only {min(unknown)}: none of {', '.join(BENCHMARKS)}")
        folder = results_folder(self.output, read_environment(()), self.quick)
        chosen = {name: BENCHMARKS[name] for name in self.only or BENCHMARKS}
        more = {"sharding": {"peers_python": self.peers_python}}
        made = {
            name: make(quick=self.quick, output=folder, **more.get(name, {})).run
            for name, make in chosen.items()
        }
        return run(made, folder)


@dataclass
class Readme:
    """Writes the README's numbers anew, from the results files."""

    check: bool = False
    """Change nothing; name each number that is stale or that no results file has, and exit with 1
    where there is one."""

    def run(self) -> int:
        from benchmarks.readme import run

        return run(check=self.check)


@dataclass
class Scale:
    """Our loader over 100,000 shards: links to one tar of 1,000 tiny photos.

    Seconds to the first batch, the memory that this takes, and what the order of a step costs.
    """

    quick: bool = False
    """A hundredth of the shards: shows that it works."""
    output: Output = None
    """Folder for scale.json; else one of benchmarks/results, by hardware."""

    def run(self) -> int:
        from benchmarks.loader.scale import run

        return run(quick=self.quick, output=self.output)


@dataclass
class Resume:
    """A run that is killed three times and resumed, beside one that is never interrupted.

    Draws the curves of both, which lie on each other; exits with 1 where any number differs.
    """

    output: Annotated[Path, tyro.conf.arg(metavar="PNG")] = Path("docs/resume.png")

    def run(self) -> int:
        from benchmarks.training.resume import run

        return run(output=self.output)


@dataclass
class Scaling:
    """What bounds each stage, from 10,000 photos on a laptop to a billion on a cluster: a model.

    Prints its table, and how far it is from what was measured here.
    """

    def run(self) -> int:
        from benchmarks.scaling import run

        return run()


BENCHMARKS: dict[str, Callable[..., Loader | Sharding | Training | Tuning | Serving]] = {
    "sharding": Sharding,
    "loader": Loader,
    "training": Training,
    "tuning": Tuning,
    "serving": Serving,
}
COMMANDS: dict[str, Callable[..., Any]] = {
    **BENCHMARKS,
    "all": Everything,
    "scale": Scale,
    "scaling": Scaling,
    "resume": Resume,
    "readme": Readme,
}


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
