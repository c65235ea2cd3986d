"""Where and with what a benchmark ran: what a number means nothing without."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Environment", "read_environment"]

REPOSITORY = Path(__file__).parent.parent


@dataclass(frozen=True)
class Environment:
    """The machine, the software and the call."""

    cpu: str
    num_cores: int
    memory_gib: float
    gpu: str | None
    system: str
    python: str
    libraries: dict[str, str]
    """Version of each library that is measured; "not installed" where it is missing."""
    commit: str | None
    """Of this checkout, marked `-dirty` where files were changed since; None outside of one."""
    date: str
    """UTC, ISO 8601."""
    command: str

    @property
    def hardware(self) -> str:
        """`2-core-amd-epyc`, or `nvidia-h100` where there is a GPU: the name of a folder."""
        if self.gpu:
            # "NVIDIA H100 80GB HBM3": memory and plug are no part of the name.
            words = [
                word
                for word in self.gpu.split()
                if not re.fullmatch(r"\d+GB|HBM\w*|PCIe|SXM\d*", word, re.IGNORECASE)
            ]
            return _slug(" ".join(words))
        cpu = re.sub(r"\((R|TM)\)|@.*|\b(CPU|Processor|\d+-Core)\b", " ", self.cpu, flags=re.I)
        return _slug(f"{self.num_cores}-core {cpu}")

    def to_dict(self) -> dict[str, Any]:
        """As the JSON holds it."""
        return {**asdict(self), "hardware": self.hardware}

    def to_markdown(self) -> str:
        """A few lines for the reader of a table."""
        machine = f"{self.cpu}, {self.num_cores} cores, {self.memory_gib:.0f} GiB, "
        libraries = ", ".join(f"{name} {version}" for name, version in self.libraries.items())
        return "\n".join(
            [
                f"- Machine: {machine}{self.gpu or 'no GPU'}; {self.system}",
                f"- Software: Python {self.python}, {libraries}",
                f"- Run: `{self.command}`, {self.date}, commit {self.commit or 'unknown'}",
            ]
        )


def read_environment(libraries: Sequence[str]) -> Environment:
    """What is here now; `libraries` are the distributions whose versions matter."""
    return Environment(
        cpu=_cpu(),
        num_cores=os.cpu_count() or 1,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        gpu=_gpu(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        libraries={name: _version(name) for name in libraries},
        commit=_output("git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        # Of a path, its end: where things lie on this machine is nobody's business.
        command=shlex.join(
            ["python", "-m", "benchmarks", *(word.rpartition("/")[2] for word in sys.argv[1:])]
        ),
    )


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()


def _gpu() -> str | None:
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _output(*command: str) -> str | None:
    """What a command prints, or None where it fails or there is none such."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None


def _slug(text: str) -> str:
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))
