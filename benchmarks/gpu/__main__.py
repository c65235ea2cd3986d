"""A quarter of an hour on a GPU, used well: `python -m benchmarks.gpu`, or `make gpu`."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from benchmarks.environment import read_environment
from benchmarks.gpu.context import Context
from benchmarks.gpu.steps import Outcome, all_steps, run_step
from benchmarks.gpu.table import table
from benchmarks.gpu.turns import PUBLISHED
from benchmarks.results import results_folder
from bintally.storage.folder import write_atomically
from bintally.terminal.command import run_command
from bintally.terminal.progress import say

LIBRARIES = ("torch", "torchvision", "timm", "nvidia-dali-cuda130", "ray")
AT_ONCE = 3
"""Steps of a group."""
GPU_JSON, GPU_MD, ARCHIVE = "gpu.json", "gpu.md", "gpu.tar.gz"


@dataclass
class Gpu:
    """Is the GPU path right, and how fast is it? Every step is a process with a limit of its own;
    what there is so far is in gpu.json after each, and a short table comes last."""

    part: Annotated[Literal["right", "fast", "all"], tyro.conf.Positional] = "all"
    """The steps that tell whether it is right (about 100 s), those that tell how fast and how
    accurate (about 11 minutes), or all. `fast` needs the datasets that `right` made in --work."""
    seconds: float = 840.0
    """How long all may take. For what does not fit in, the table says so."""
    work: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path(
        tempfile.gettempdir(), "bintally-gpu"
    )
    """Datasets, runs and logs. If `originals/` lies here, a bucket of photos, it is what is read;
    `bucket224/` is what is trained on, and tf_efficientnet_lite0_timm.safetensors what from. Else
    photos are rendered, and weights are random."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for gpu.json, gpu.md and gpu.tar.gz (all logs and results). Else the first two, and
    the loader's and the training's results, go to one of benchmarks/results, by hardware."""
    smallest: bool = False
    """A rehearsal: every step once, as small as it goes. Runs without a GPU."""

    def run(self) -> int:
        context = Context(self.work.absolute(), self.seconds, self.smallest)
        if self.part != "fast":
            shutil.rmtree(context.results, ignore_errors=True)
        (context.results / "log").mkdir(parents=True, exist_ok=True)
        environment = read_environment(LIBRARIES)
        folder = results_folder(self.output, environment, self.smallest)
        file = context.results / "steps.json"
        outcomes = json.loads(file.read_text()) if file.exists() else []
        writing = threading.Lock()

        def note(outcome: Outcome) -> None:
            with writing:
                outcomes.append(asdict(outcome))
                context.keep("steps", outcomes)
                ended = "left out: no time" if outcome.exit_code is None else outcome.exit_code
                say(f"{outcome.name}: {ended}, {outcome.seconds:.0f} of {outcome.limit_s:.0f} s")
                _gather(context, folder, environment.to_dict())

        for group in all_steps(context):
            steps = [step for step in group if self.part in (step.part, "all")]
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda step: note(run_step(context, step)), steps))
        text = table(_gather(context, folder, environment.to_dict()))
        write_atomically(folder / GPU_MD, text.encode())
        if self.output is None:
            for path in (context.results / PUBLISHED).glob("*"):
                shutil.copy(path, folder)
        else:
            with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
                archive.add(context.results, ".")
        print(text)
        return int(any(outcome["exit_code"] for outcome in outcomes))


def _gather(context: Context, folder: Path, environment: dict[str, Any]) -> dict[str, Any]:
    """All results so far, in one file."""
    parts = sorted(context.results.glob("*.json"))
    parts += sorted((context.results / PUBLISHED).glob("*.json"))
    report = {path.stem: json.loads(path.read_text()) for path in parts}
    report |= {"environment": environment, "compiled": _epochs(context.work / "compiled")}
    write_atomically(folder / GPU_JSON, (json.dumps(report, indent=1) + "\n").encode())
    return report


def _epochs(run: Path) -> list[dict[str, Any]]:
    """A run's lines of `metrics.jsonl`."""
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main() -> int:
    command = tyro.cli(Gpu, prog="python -m benchmarks.gpu", config=(tyro.conf.FlagCreatePairsOff,))
    return run_command(command.run)


if __name__ == "__main__":
    sys.exit(main())
