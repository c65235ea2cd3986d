"""Two builds of one place at once, stopped, continued and killed at random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import bintally.storage.s3.lease
from bintally.dataset.manifest import DATASET
from bintally.storage.opening import open_place
from bintally.storage.place import Place
from sharding.build import build
from sharding.distribute import Processes
from sharding.planning.options import Options
from sharding.verify import verify
from tests.conftest import REPOSITORY

BUILD = """
import bintally.storage.s3.lease, runpy
bintally.storage.s3.lease.TIME_TO_LIVE_S, bintally.storage.s3.lease.RENEWED_EVERY_S = 2.0, 0.3
runpy.run_module("sharding", run_name="__main__", alter_sys=True)
"""
SIGNALS = [signal.SIGSTOP] * 3 + [signal.SIGCONT] * 3 + [signal.SIGKILL]


def begin(source: Path, place: Place, seed: int, *more: str) -> subprocess.Popen[str]:
    words = ["--source", str(source), "--output", place.url, "--seed", str(seed), *more]
    words += ["--shard-samples", "6", "--resize", "64x64"]
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, "build", *words],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def disturb(builds: list[subprocess.Popen[str]], draw: random.Random) -> None:
    """Sends signals, to a build or to it and its workers, and lets both come to an end."""
    for _ in range(draw.randrange(1, 9)):
        time.sleep(draw.uniform(0.05, 0.9))
        victim = draw.choice(builds)
        send = draw.choice([os.kill, os.killpg])
        if victim.poll() is None:
            with suppress(ProcessLookupError):
                send(victim.pid, draw.choice(SIGNALS))
    for victim in builds:
        with suppress(ProcessLookupError):
            os.killpg(victim.pid, signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("where", ["folder", "S3"])
def test_whatever_says_that_it_is_done_verifies(
    where: str,
    seed: int,
    bucket: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bintally.storage.s3.lease, "TIME_TO_LIVE_S", 2.0)
    monkeypatch.setattr(bintally.storage.s3.lease, "RENEWED_EVERY_S", 0.3)
    draw, verified = random.Random(seed), 0
    base = tmp_path if where == "folder" else request.getfixturevalue("s3")
    for attempt in range(5):
        place = open_place(f"{base}/{attempt}")
        restarts = draw.random() < 0.3
        builds = [
            begin(bucket, place, draw.choice([0, 0, 1]), "--workers", draw.choice(["1", "2"])),
            begin(bucket, place, draw.choice([0, 0, 1]), *(["--restart"] if restarts else [])),
        ]
        disturb(builds, draw)
        for process in builds:
            _, errors = process.communicate(timeout=120)
            assert "Traceback" not in errors, errors
            assert process.returncode in (0, 1, 2, -signal.SIGKILL), errors
        complete = DATASET in {entry.path for entry in place.entries()}
        # A build that was told to begin anew may have deleted what the other one had finished.
        assert complete or restarts or 0 not in [process.returncode for process in builds]
        if complete:
            assert verify(place, decode=True, distributor=Processes(1))[1] == []
            verified += 1
        # And what is left stands in nobody's way.
        options = Options(shard_samples=6, resize="64x64")
        build(
            open_place(bucket),
            place,
            options,
            distributor=Processes(1),
            connections=8,
            restart=True,
        )
        assert verify(place, decode=True, distributor=Processes(1))[1] == []
    assert verified
