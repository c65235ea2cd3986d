"""Slurm, as far as the job scripts ask for it: nodes are addresses of this machine, tasks its
processes. This file is `srun` and `scontrol`, too, for the script that a job runs."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.ray_nodes import end_marked

__all__ = ["Job"]

NODES = ("127.0.0.1", "127.0.0.2")
LONGEST_S = 240.0
PROGRAMS = {
    "srun": f"{__file__} srun",
    "scontrol": f"{__file__} scontrol",
    "python": "",
    "bintally": "-m bintally",
    "torchrun": "-m torch.distributed.run",
}


class Job:
    """A batch script, submitted with its words, and its starts one after the other."""

    def __init__(
        self, folder: Path, script: Path, *words: object, port: int, **variables: str
    ) -> None:
        """`port` is the one that the script makes of the job's number."""
        self._folder, self._script, self._words = folder, script, [*map(str, words)]
        directives = re.findall(
            r"^#SBATCH --([\w-]+)(?:=(\S+))?$", script.read_text(), re.MULTILINE
        )
        self.options = dict(directives)
        self._restarts = 0
        self._mark = f"BINTALLY_TEST_JOB={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        programs = folder / "programs"
        programs.mkdir()
        for program, what in PROGRAMS.items():
            add_program(programs, program, f'exec {shlex.quote(sys.executable)} {what} "$@"')
        self._environment = {
            **os.environ,
            name: value,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "FAKE_SLURM": str(folder),
            "SLURM_JOB_ID": str(port - 20_000),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_NUM_NODES": str(len(NODES)),
            "SLURM_CPUS_PER_TASK": "1",
            **variables,
        }
        self.programs = programs

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    @property
    def is_requeued(self) -> bool:
        """Whether the script itself had the job queued again."""
        return (self._folder / "requeued").exists()

    def start(self) -> subprocess.Popen[bytes]:
        """Starts the script, on the first node."""
        (self._folder / "requeued").unlink(missing_ok=True)
        environment = dict(self._environment)
        if self._restarts:
            environment["SLURM_RESTART_COUNT"] = str(self._restarts)
        self._restarts += 1
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                ["bash", self._script, *self._words], stdout=log, stderr=log, env=environment
            )

    def tell_of_the_time_limit(self, script: subprocess.Popen[bytes]) -> None:
        """As `--signal` says: the script alone is told."""
        whom, name, seconds = re.split("[:@]", self.options["signal"])
        assert whom == "B"
        assert int(seconds) > 30 + 10, "torchrun gives its processes 30 s to save"
        script.send_signal(signal.Signals[f"SIG{name}"])

    def preempt(self, script: subprocess.Popen[bytes]) -> None:
        """Every process of the job is told; with --requeue, Slurm queues it again."""
        assert "requeue" in self.options
        for task in (self._folder / "tasks").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(task.name), signal.SIGTERM)
        script.terminate()

    def end(self, script: subprocess.Popen[bytes]) -> int:
        """Waits for the script; its exit code. Nothing of the job is left then."""
        try:
            return script.wait(LONGEST_S)
        finally:
            script.kill()
            end_marked(self._mark)


def add_program(folder: Path, name: str, line: str) -> None:
    """A shell script on the PATH."""
    (folder / name).write_text(f"#!/bin/sh\n{line}\n")
    (folder / name).chmod(0o755)


def srun(words: list[str]) -> int:
    """A task on each node; signals are passed on. The highest exit code."""
    options = {"--wait": "0", "--kill-on-bad-exit": "0"}
    while words[0].startswith("--"):
        option, _, value = words.pop(0).partition("=")
        assert option in options, option
        options[option] = value
    wait_s = float(options["--wait"])
    folder = Path(os.environ["FAKE_SLURM"]) / "tasks"
    folder.mkdir(exist_ok=True)
    tasks = []
    for number, node in enumerate(NODES):
        more = {"SLURM_NODEID": str(number), "SLURM_PROCID": str(number), "SLURMD_NODENAME": node}
        tasks.append(subprocess.Popen(words, env={**os.environ, **more}))
        (folder / str(tasks[-1].pid)).touch()

    def pass_on(number: int, _: object) -> None:
        for task in tasks:
            if task.poll() is None:
                task.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, pass_on)
    ended_at = None
    while any(task.poll() is None for task in tasks):
        if ended_at is None and any(task.poll() is not None for task in tasks):
            ended_at = time.monotonic()
        if ended_at is not None and wait_s and time.monotonic() - ended_at > wait_s:
            kill(tasks)
        if options["--kill-on-bad-exit"] == "1" and any(task.poll() for task in tasks):
            kill(tasks)
        time.sleep(0.05)
    return max(abs(task.wait()) for task in tasks)


def kill(tasks: Sequence[subprocess.Popen[bytes]]) -> None:
    for task in tasks:
        task.kill()


def scontrol(words: list[str]) -> int:
    match words:
        case ["show", "hostnames", "node[1-2]"]:
            sys.stdout.write("".join(f"{node}\n" for node in NODES))
        case ["requeue", job] if job == os.environ["SLURM_JOB_ID"]:
            (Path(os.environ["FAKE_SLURM"]) / "requeued").touch()
        case _:
            sys.exit(f"scontrol: {words}")
    return 0


if __name__ == "__main__":
    sys.exit({"srun": srun, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))
