"""The shard makers under test, each as a process, as its user starts it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.environment import REPOSITORY
from benchmarks.measure import Measurement, family_memory_mib
from bintally.errors import WorkError

__all__ = ["FEW", "PHOTOS", "Kind", "Usage", "Workload", "make_shards", "run_ours", "run_process"]

Kind = Literal["ours", "webdataset", "mds", "img2dataset", "img2dataset-decoded"]

PHOTOS, FEW = "photos", "few"
"""The buckets: all photos, and the few of them that tell what starting costs."""
MOST_ITEMS = 1000
"""As --max-count: every photo is to be in a shard."""
SAMPLE_EVERY_S = 0.25
SCRIPT = Path(__file__).parent / "peers.py"


@dataclass(frozen=True)
class Workload:
    """What every contestant is given."""

    endpoint: str
    num_photos: Mapping[str, int]
    """By bucket."""
    num_bytes: Mapping[str, int]
    """Of the photos, likewise."""
    urls: Mapping[str, str]
    """CSV files of the photos' URLs and ids, likewise."""
    shard_samples: int
    num_cores: int
    scratch: Path
    """Where the runs write; what they wrote is removed."""


@dataclass(frozen=True)
class Usage:
    """What a process and all those that it started took."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def make_shards(workload: Workload, kind: Kind, python: str) -> Measurement:
    """Shards of a few photos, for what starting and ending costs, and then of all."""
    few = _job(workload, kind, python, FEW)
    all_ = _job(workload, kind, python, PHOTOS)
    num_photos = workload.num_photos[PHOTOS]
    measured = {
        "photos_per_s": num_photos / all_.wall_s,
        "start_s": few.wall_s,
        "cpu_s_per_1000": 1000 * all_.cpu_s / num_photos,
        "peak_memory_mib": all_.peak_mib,
    }
    # The start's noise may be more than what few photos take.
    if (steady_s := all_.wall_s - few.wall_s) > 0:
        measured["steady_per_s"] = (num_photos - workload.num_photos[FEW]) / steady_s
    return measured


def run_ours(
    endpoint: str, bucket: str, output: Path, cache: Path, options: Sequence[str]
) -> Usage:
    """`bintally build`, all photos into the train split."""
    command = [sys.executable, "-m", "sharding", "build"]
    command += ["--source", f"s3://{bucket}", "--output", str(output)]
    command += ["--max-count", str(MOST_ITEMS), "--split", "1", "0", "0", *options]
    return run_process(command, endpoint, {"BINTALLY_CACHE": str(cache)})


def _job(workload: Workload, kind: Kind, python: str, bucket: str) -> Usage:
    """Makes a bucket's shards, and checks that every byte of its photos is in them."""
    folder = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=workload.scratch))
    try:
        output = folder / "shards"
        if kind == "ours":
            # A new cache each time: our build fetches the metadata as the others do.
            options = ["--shard-samples", str(workload.shard_samples)]
            usage = run_ours(workload.endpoint, bucket, output, folder / "cache", options)
        else:
            command = [python, "-P", str(SCRIPT), kind, str(output), bucket]
            command += [str(workload.shard_samples), str(workload.num_cores), workload.urls[bucket]]
            usage = run_process(command, workload.endpoint, {})
        found = _mds_contents(output) if kind == "mds" else _tar_contents(output)
        expected = workload.num_photos[bucket], workload.num_bytes[bucket]
        if kind == "img2dataset-decoded":  # Which encodes them again.
            expected = expected[0], found[1]
        if found != expected:
            raise WorkError(
                f"its shards hold {found[0]:,} photos of {found[1]:,} bytes, not "
                f"{expected[0]:,} of {expected[1]:,}"
            )
        return usage
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tar_contents(output: Path) -> tuple[int, int]:
    """How many photos the tars below a folder hold, and their bytes."""
    sizes = []
    for path in output.rglob("*.tar"):
        with tarfile.open(path) as tar:
            sizes += [member.size for member in tar if member.name.endswith(".jpg")]
    return len(sizes), sum(sizes)


def _mds_contents(output: Path) -> tuple[int, int]:
    """The same for MDS shards, whose samples begin with the sizes of what varies in size."""
    num_photos = num_bytes = 0
    for shard in json.loads((output / "index.json").read_text())["shards"]:
        data = (output / shard["raw_data"]["basename"]).read_bytes()
        names, sizes = shard["column_names"], shard["column_sizes"]
        place = [name for name, size in zip(names, sizes, strict=True) if size is None].index("jpg")
        for number in range(shard["samples"]):
            # A table of where each sample begins follows the number of samples.
            begin = int.from_bytes(data[4 + 4 * number : 8 + 4 * number], "little")
            field = begin + 4 * place
            num_bytes += int.from_bytes(data[field : field + 4], "little")
            num_photos += 1
    return num_photos, num_bytes


def run_process(command: Sequence[str], endpoint: str, settings: Mapping[str, str]) -> Usage:
    """Runs a command to its end, with `endpoint` for S3; `WorkError` where it fails."""
    # What the user has set for AWS is not for this server.
    environment = {name: v for name, v in os.environ.items() if not name.startswith("AWS_")}
    environment |= {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        # img2dataset asks an update server for itself through a dependency.
        "NO_ALBUMENTATIONS_UPDATE": "1",
        **settings,
    }
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        _adopt_orphans()
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        ended = threading.Event()
        peak = [0.0]
        watcher = threading.Thread(target=_watch, args=(process.pid, ended, peak), daemon=True)
        watcher.start()
        try:
            # wait4 tells the CPU time of a process and of those for which it waited itself.
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        wall_s = time.perf_counter() - began
        cpu_s = usage.ru_utime + usage.ru_stime
        # What it started may end after it: multiprocessing's servers do.
        with contextlib.suppress(ChildProcessError):
            while True:
                _, _, usage = os.wait4(-process.pid, 0)
                cpu_s += usage.ru_utime + usage.ru_stime
        process.returncode = os.waitstatus_to_exitcode(status)
        ended.set()
        watcher.join()
        if process.returncode:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else "no output"
            raise WorkError(f"exit code {process.returncode}: {reason}")
    return Usage(wall_s, cpu_s, peak[0])


def _adopt_orphans() -> None:
    """Lets this process wait for what its children leave behind, and know its CPU time (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


PR_SET_CHILD_SUBREAPER = 36


def _watch(pid: int, ended: threading.Event, peak: list[float]) -> None:
    """Keeps the most memory that a process and its descendants have had together."""
    while not ended.wait(SAMPLE_EVERY_S):
        peak[0] = max(peak[0], family_memory_mib(pid))
