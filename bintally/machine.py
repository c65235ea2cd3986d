"""What this process may use of its machine: cores, files, and a folder for sockets."""

from __future__ import annotations

import math
import os
import resource
import tempfile
from pathlib import Path

__all__ = ["num_cores", "open_files_limit", "ranks_here", "socket_folder", "visible_gpus"]

LONGEST_SOCKET_FOLDER = 40
"""Bytes: a socket's path has at most 107 (103 on macOS), of which Ray takes 65 below its folder."""
MANY_FILES = 65_536


def num_cores() -> int:
    """The cores that this process may keep busy: as many as the machine has, as its affinity
    (`taskset`, Slurm) and its cgroup's quota (Docker, Kubernetes) leave it."""
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, math.ceil(min(allowed, _quota())))


def ranks_here() -> int:
    """The processes of a training that share this machine with this one, itself included."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. Needs no PyTorch."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [name.strip() for name in told.split(",") if name.strip() not in ("", "-1")]
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        return [str(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _quota(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> float:
    """The cores that the cgroups of this process may use; infinity where they have no quota."""
    try:
        lines = [line.split(":", 2) for line in groups.read_text().splitlines()]
    except OSError:
        return math.inf
    least = math.inf
    for _, controllers, path in lines:
        if controllers == "":  # cgroup v2, with all controllers in one tree
            top = root
        elif "cpu" in controllers.split(","):
            top = root / "cpu"
        else:
            continue
        # The quota of a group holds for all below it. In a container its own group is the root.
        below = Path(path.lstrip("/"))
        for folder in (below, *below.parents):
            least = min(least, _quota_of(top / folder))
    return least


def _quota_of(folder: Path) -> float:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        cores = int(quota) / int(period)
    except (OSError, ValueError):  # "max" is no number: no quota.
        return math.inf
    return cores if cores > 0 else math.inf


def open_files_limit() -> int:
    """How many files this process may have open, after asking for as many as it may ask for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return MANY_FILES if soft == resource.RLIM_INFINITY else soft


def socket_folder() -> str:
    """The folder for temporary files, or another one where its name is too long for a socket's."""
    usual = tempfile.gettempdir()
    for folder in (usual, "/tmp", "/var/tmp", "/dev/shm"):
        if len(os.fsencode(folder)) <= LONGEST_SOCKET_FOLDER and os.access(folder, os.W_OK):
            return folder
    return usual
