"""What started this process, and starts it again when it or a node is lost: torchrun, or Slurm."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["end_with_launcher", "launchers", "restarters"]

PR_SET_PDEATHSIG = 1
NO_ID = "none"
"""What torchrun calls a job that has no --rdzv-id."""


def launchers(environment: Mapping[str, str]) -> set[str]:
    """Names of what started this process: torchrun's agent and job, and Slurm's job."""
    names = set()
    if environment.get("TORCHELASTIC_RUN_ID", NO_ID) != NO_ID:
        names.add(_job(environment))
    if "TORCHELASTIC_ERROR_FILE" in environment:
        # …/RUN_ID_xxxxxxxx/attempt_N/LOCAL_RANK/error.json: a folder that each agent makes itself.
        folder = Path(environment["TORCHELASTIC_ERROR_FILE"]).parents[2]
        names.add(f"torchrun agent {socket.gethostname()} {folder}")
    if "SLURM_JOB_ID" in environment:
        names.add(_slurm(environment))
    return names


def restarters(environment: Mapping[str, str], *, restart: bool) -> set[str]:
    """Those of `launchers` that may have started an earlier process of the very job this one is of.

    A Slurm job is one where it was queued again: in an allocation, one command follows the other.
    A torchrun job's id should be used once, but may stand in a script; `restart` then means what it
    says.
    """
    names = launchers(environment)
    if int(environment.get("SLURM_RESTART_COUNT") or 0) == 0:
        names.discard(_slurm(environment))
    if restart:
        names.discard(_job(environment))
    return names


def end_with_launcher() -> None:
    """Asks this process to end (SIGTERM) when torchrun's agent that started it has been killed.

    Its place is taken by another one, and two may not train one run. Linux only.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _job(environment: Mapping[str, str]) -> str:
    return f"torchrun job {environment.get('TORCHELASTIC_RUN_ID')}"


def _slurm(environment: Mapping[str, str]) -> str:
    cluster = environment.get("SLURM_CLUSTER_NAME", "")
    return f"slurm {cluster} {environment.get('SLURM_JOB_ID', '')}"
