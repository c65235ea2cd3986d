"""The steps, in the order of their worth, each with a limit of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.environment import REPOSITORY
from benchmarks.gpu.context import TINY, Context

__all__ = ["Outcome", "Part", "Step", "all_steps", "run_step"]

Part = Literal["right", "fast"]
"""Is it right? How fast, and how accurate?"""
END_S = 5.0
"""From a step's own limit to the signal, and from that to the kill."""
LEAST_S = 10.0
"""A step with less time than that is left out."""


@dataclass(frozen=True)
class Step:
    """A process of its own: it fails or hangs alone, and leaves what it has."""

    name: str
    part: Part
    limit_s: float
    command: Sequence[str]
    """What the interpreter is given."""


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    name: str
    exit_code: int | None
    """None where there was no time for it."""
    seconds: float
    limit_s: float


def all_steps(context: Context) -> list[list[Step]]:
    """All of them, in groups; those of a group need not wait for each other: right or wrong does
    not depend on who else computes, and in a rehearsal nothing does. `limit_s` was chosen for an
    H100 and 16 cores."""
    tests = ["-m", "pytest", "-m", "gpu", "tests/gpu", "-v", "-rA", "-p", "no:cacheprovider"]
    big, rendered = str(context.work / "big"), str(context.work / "rendered")
    fit = ["-m", "training", "fit", "--weights", "none"]
    profiled = [*fit, "--shards", rendered, "--run", str(context.work / "profiled"), "--profile"]
    compiled = [*fit, "--compile", "--epochs", "2", "--run", str(context.work / "compiled")]
    if context.smallest:
        small = ["--backbone", TINY, "--image-size", "32", "--batch-size", "8"]
        profiled += ["--epochs", "2", *small]
        compiled += ["--shards", rendered, *small]
    else:
        profiled += ["--epochs", "2", "--batch-size", "32", "--backbone", "resnet50"]
        compiled += ["--shards", big, "--batch-size", "256", "--backbone", "resnet50"]

    def module(name: str, limit_s: float, *words: str) -> list[str]:
        return context.command(name, limit_s - END_S, *words)

    first = [
        Step("versions", "right", 60, module("versions", 60)),
        Step("datasets", "right", 60, module("datasets", 60)),
    ]
    together = [
        Step("tests", "right", 110, [*tests, "-k", "not trials", "--timeout=100"]),
        Step("trials", "right", 150, [*tests, "-k", "trials", "--timeout=75"]),
        Step("check", "right", 150, module("check", 150)),
    ]
    alone = [
        Step("profile", "right", 60, profiled),
        Step("training", "fast", 140, module("turns", 140, "training")),
        Step("grid", "fast", 90, module("grid", 90)),
        Step("model", "fast", 150, module("model", 150)),
        Step("serve", "fast", 75, module("serve", 75)),
        Step("accuracy", "fast", 130, module("accuracy", 130)),
        Step("search", "fast", 120, module("search", 120)),
        Step("loader", "fast", 130, module("turns", 130, "loader")),
        Step("compiled", "fast", 120, compiled),
    ]
    if context.smallest:
        # Side by side on few cores, the longest first, none is as fast as it would be alone.
        rest = sorted(together + alone, key=lambda step: -step.limit_s)
        return [*([step] for step in first), [replace(s, limit_s=2 * s.limit_s) for s in rest]]
    return [*([step] for step in first), together, *([step] for step in alone)]


def run_step(context: Context, step: Step) -> Outcome:
    """Runs a step, its output going to a log. Ends it, and all that it started, at its limit."""
    began = time.monotonic()
    limit_s = min(step.limit_s, context.left)
    if limit_s < LEAST_S:
        return Outcome(step.name, None, 0, step.limit_s)
    log = context.results / f"log/{step.name}.txt"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
        "BINTALLY_CACHE": str(context.work / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(context.work / "inductor"),
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *step.command],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
        finally:
            # What a step started ends with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return Outcome(step.name, process.wait(), round(time.monotonic() - began, 1), step.limit_s)
