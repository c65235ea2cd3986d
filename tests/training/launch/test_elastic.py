"""Two torchrun agents: nodes join, leave, are killed and replaced, and the run goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from torch._C._distributed_c10d import TCPStore

from bintally.counting.checkpoint import read_checkpoint
from tests.conftest import REPOSITORY
from tests.training.runs import arguments, settings
from tests.training.survival.test_survival import workers
from training.config import FitConfig

EVENTS = 20
LONGEST_WAIT_S = 120.0


class Job:
    """One torchrun job of up to two nodes, all of them on this machine."""

    def __init__(self, config: FitConfig, log: Path) -> None:
        self.config, self.log = config, log
        self.agents: list[subprocess.Popen[bytes]] = []
        # No node's end takes the rendezvous along.
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.position = (0, 0)

    def join(self) -> None:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2"]
        launcher += [
            "--nproc-per-node=1",
            "--max-restarts=100",
            "--rdzv-backend=c10d",
            "--rdzv-id=nodes",
        ]
        launcher += [f"--rdzv-endpoint=127.0.0.1:{self.store.port}"]
        launcher += ["--rdzv-conf=is_host=0,last_call_timeout=2", "-m", "--", "training", "fit"]
        with self.log.open("ab") as log:
            agent = subprocess.Popen(
                [*launcher, *arguments(self.config)],
                cwd=REPOSITORY,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
                },
            )
        self.agents.append(agent)

    def lose(self, agent: subprocess.Popen[bytes], how: signal.Signals) -> None:
        self.agents.remove(agent)
        agent.send_signal(how)
        agent.wait()

    def wait_for_both(self) -> None:
        """Returns when processes of both nodes train."""
        began, before = time.monotonic(), self.log.read_text().count("; 2 × cpu")
        while self.log.read_text().count("; 2 × cpu") == before:
            assert time.monotonic() - began < LONGEST_WAIT_S, self.log.read_text()[-5000:]
            time.sleep(0.5)

    def goes_on(self) -> float:
        """Seconds until the run has gone on; never behind where it was."""
        began, start = time.monotonic(), self._look()
        while self._look() <= start:
            assert time.monotonic() - began < LONGEST_WAIT_S, self.log.read_text()[-5000:]
            assert all(agent.poll() is None for agent in self.agents), self.log.read_text()[-5000:]
            time.sleep(0.5)
        return time.monotonic() - began

    def _look(self) -> tuple[int, int]:
        """Where the last checkpoint is."""
        last = self.config.run / "last.pt"
        if last.exists():
            checkpoint, _ = read_checkpoint(last)
            position = checkpoint.epoch, checkpoint.step
            assert position >= self.position, "the run has gone back"
            self.position = position
        return self.position


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_nodes_come_and_go_and_the_run_goes_on(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, tmp_path / "run", batch_size=4, epochs=100_000)
    job = Job(replace(config, checkpoint_every_minutes=1e-9), tmp_path / "log")
    dice = random.Random(7)
    job.join()
    try:
        job.goes_on()
        for number in range(EVENTS):
            time.sleep(dice.uniform(0, 3))
            if len(job.agents) == 1:
                event = "join"
                job.join()
                if dice.random() < 0.7:  # Else the next thing happens while it is on its way.
                    job.wait_for_both()
            else:
                event = dice.choice(["leave", "killed agent", "killed process", "replacement"])
                agent = dice.choice(job.agents)
                if event == "killed process":
                    for process in workers(agent.pid):
                        os.kill(process, signal.SIGKILL)
                else:
                    job.lose(agent, signal.SIGTERM if event == "leave" else signal.SIGKILL)
                if event == "replacement":
                    job.join()
            print(f"{number} {event}: {job.goes_on():.1f} s, at {job.position}", flush=True)
    finally:
        for agent in job.agents:
            agent.terminate()
        for agent in job.agents:
            agent.wait()
