"""The sharding benchmark: `python -m benchmarks sharding [--quick]`, see `Sharding` in `__main__`.

Shards from a server that is fast, ours beside its peers; shards from a server that is far away,
beside what its latency allows; plans of datasets as large as ABID and larger; and what a build as
large as ABID costs the process that drives it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.environment import read_environment
from benchmarks.measure import Contestant, Result, Role, take_turns
from benchmarks.plot import publish
from benchmarks.results import NOTHING, Metric, Report, results_folder
from benchmarks.sharding.buckets import NUM_FEW, prepare, render
from benchmarks.sharding.contestants import (
    PHOTOS,
    Kind,
    Workload,
    make_shards,
)
from benchmarks.sharding.distant import CONNECTIONS, LATENCY_S, describe_distant, measure_distant
from benchmarks.sharding.driver import describe_driver, describe_growth, grow, measure_driver
from benchmarks.sharding.invented import NUM_IMAGES
from benchmarks.sharding.peers import THREADS
from benchmarks.sharding.plan import MANY_IMAGES, describe_plan, measure_plan
from benchmarks.sharding.server import Nginx, find_nginx
from bintally.errors import UsageError

__all__ = ["run"]

LIBRARIES = ("obstore", "simplejpeg", "pyarrow", "boto3", "webdataset")
PEERS = ("img2dataset", "mosaicml-streaming")
METRICS = (
    Metric("photos_per_s", "photos/s"),
    Metric("start_s", "8 photos, s", 2),
    Metric("steady_per_s", "photos/s without that"),
    Metric("cpu_s_per_1000", "CPU s per 1,000 photos", 2),
    Metric("peak_memory_mib", "peak memory, MiB"),
)
PHOTOS_PER_CORE = 3000
PHOTOS_PER_CORE_QUICK = 150
RENDERED_PER_CORE = 500
"""The others are links to these."""
NUM_ROUNDS = 3
"""Each takes a minute or two: jobs are measured whole."""
NOT_INSTALLED = "not installed"


@dataclass(frozen=True)
class ShardingReport(Report):
    """The table of the makers, and the other measurements beside it."""

    distant: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    large_plan: Mapping[str, Any] = field(default_factory=dict)
    driver: Mapping[str, Any] = field(default_factory=dict)

    @property
    def growth(self) -> Mapping[str, Any]:
        return grow(self.plan, self.large_plan, self.driver)

    def to_dict(self) -> dict[str, Any]:
        more = {
            "distant_server": self.distant,
            "plan": self.plan,
            "large_plan": self.large_plan,
            "driver": self.driver,
            "growth": self.growth,
        }
        return {**super().to_dict(), **more}

    @property
    def drawn(self) -> Report:
        """No bar, nor the place of one, for a peer that is not here."""
        shown = [result for result in self.results if result.error != NOT_INSTALLED]
        has_peer = any(result.contestant.role == "peer" for result in shown)
        return replace(self, results=shown) if has_peer else self

    @property
    def failed(self) -> bool:
        errors = [result.error for result in self.results if result.error != NOT_INSTALLED]
        return any([*errors, self.distant.get("error"), self.growth.get("error")])

    @property
    def _more(self) -> Sequence[tuple[str, str]]:
        """What was measured beside the table: titles and sentences."""
        return [
            (
                f"A server {1000 * LATENCY_S:.0f} ms away",
                _line(self.distant, describe_distant),
            ),
            ("The plan of all of ABID", _line(self.plan, describe_plan)),
            ("A larger plan", _line(self.large_plan, describe_plan)),
            ("The driver of a build of all of ABID", _line(self.driver, describe_driver)),
            ("The driver of other builds", _line(self.growth, describe_growth)),
        ]

    def summary(self) -> str:
        return "\n".join([super().summary(), *(line for _, line in self._more)])

    def to_markdown(self) -> str:
        more = "\n\n".join(f"## {title}\n\n{line}" for title, line in self._more)
        head, found, rest = super().to_markdown().partition("## The same work for all")
        return f"{head}{more}\n\n{found}{rest}"

    def _row(self, result: Result) -> list[str]:
        # Nothing went wrong where a peer is missing.
        if result.error == NOT_INSTALLED:
            return [result.contestant.name, NOT_INSTALLED, *[NOTHING] * len(self.metrics)]
        return super()._row(result)


def run(*, quick: bool, output: Path | None, peers_python: Path | None) -> int:
    """Measures all of it and writes the results; 1 where something failed."""
    find_nginx()
    versions = _peer_versions(peers_python)
    environment = read_environment(LIBRARIES)
    environment = replace(environment, libraries={**environment.libraries, **versions})
    folder = results_folder(output, environment, quick)
    num_rounds = 2 if quick else NUM_ROUNDS
    with tempfile.TemporaryDirectory(prefix="bintally-sharding-") as temporary:
        scratch = Path(temporary)
        root = scratch / "buckets"
        num_cores = os.cpu_count() or 1
        num_images = num_cores * (PHOTOS_PER_CORE_QUICK if quick else PHOTOS_PER_CORE)
        render(root, num_images, min(num_images, num_cores * RENDERED_PER_CORE))
        with Nginx(root, scratch / "nginx") as server:
            workload = prepare(root, scratch, server.endpoint, num_cores)
            contestants = _contestants(workload, environment.libraries, peers_python)
            began = time.monotonic()
            measured = take_turns(
                [contestant for contestant, installed in contestants if installed],
                num_rounds,
                task="sharding",
                # Whole processes are as warm in the first round as in the second.
                num_warmups=0,
            )
            rounds_s = time.monotonic() - began
            version = server.version
        # Of the missing ones there is a row, in the same place as when they are here.
        ran = iter(measured)
        results = [
            next(ran) if installed else Result(contestant, error=NOT_INSTALLED)
            for contestant, installed in contestants
        ]
        distant = measure_distant(root / PHOTOS, scratch, 1 if quick else NUM_ROUNDS)
        share = 10 if quick else 1
        plan = measure_plan(NUM_IMAGES // share, 1 if quick else NUM_ROUNDS)
        large_plan = measure_plan(MANY_IMAGES // share, 1)
        driver = measure_driver(NUM_IMAGES // share)
        for result in results:
            _drop_unmeasured(result)
        report = ShardingReport(
            name="sharding",
            title="Shards from a bucket: photos and metadata over HTTP into files",
            metrics=METRICS,
            workload={
                **_describe(workload),
                "server": f"{version} on this machine, 1 worker; listings by Python",
                "server_cpu": f"{server.cpu_s:.1f} s in the {rounds_s:.0f} s of all rounds",
            },
            notes=NOTES,
            num_rounds=num_rounds,
            quick=quick,
            environment=environment,
            results=results,
            distant=distant,
            plan=plan,
            large_plan=large_plan,
            driver=driver,
        )
    return publish(report, folder)


def _drop_unmeasured(result: Result) -> None:
    """A metric that one round lacks has no median."""
    if result.rounds:
        common = set.intersection(*(set(measured) for measured in result.rounds))
        result.rounds = [{k: v for k, v in r.items() if k in common} for r in result.rounds]


NOTES = (
    "photos/s: the whole job, from the process's start to its end. After every run the photos in "
    "its shards were counted and their bytes added up (where they are kept as they are); a maker "
    "that lost one has an error here.",
    f"8 photos: the same job on a bucket of {NUM_FEW}, which is what starting and ending cost; "
    "photos/s without that: the other photos in the rest of the time, which is what a large bucket "
    "comes near; – where a start's noise hid it. Where starting is most of the job, the first "
    "column and its ratio say little about a large bucket.",
    "CPU s: user and system time of the job's processes, start included; not the server's.",
    "Peak memory: most that the job's processes had together (proportional set size), looked at "
    "four times a second.",
    "Not the same work: ours also decodes every photo to see that it is whole, which is half of "
    "its CPU time, shuffles, and writes an index, a catalog and checksums. img2dataset fetches no "
    "metadata, so half of the requests, and is given the URLs; told to decode, as it is by "
    "default, it finds a damaged photo as we do, and encodes each again. The two loops fetch photo "
    "and JSON one after the other.",
    "Server and makers share the cores, and a request takes a fraction of a millisecond: over a "
    "network, loops without concurrency fall further behind.",
)


def _contestants(
    workload: Workload, libraries: Mapping[str, str], peers_python: Path | None
) -> list[tuple[Contestant, bool]]:
    """All of them, each with whether it is installed."""
    peers = str(peers_python.absolute()) if peers_python else ""

    def contestant(name: str, kind: Kind, python: str, settings: dict[str, Any]) -> Contestant:
        role: Role = "ours" if kind == "ours" else "peer"
        return Contestant(name, partial(make_shards, workload, kind, python), settings, role)

    def installed(name: str) -> bool:
        return libraries[name] != NOT_INSTALLED

    serial = {"client": "boto3", "connections": 1, "fetches": "photo and JSON"}
    cores = workload.num_cores
    return [
        (
            contestant(
                "ours",
                "ours",
                sys.executable,
                {
                    "client": "obstore",
                    "processes": cores,
                    "connections": CONNECTIONS,
                    "fetches": "photo and JSON",
                    "checks": "decodes every photo",
                    "metadata_cache": "empty",
                },
            ),
            True,
        ),
        (
            contestant("webdataset loop", "webdataset", sys.executable, serial),
            installed("webdataset") and installed("boto3"),
        ),
        *(
            (
                contestant(
                    name,
                    kind,
                    peers,
                    {
                        "client": "urllib",
                        "processes": cores,
                        "connections": THREADS * cores,
                        "fetches": "photo",
                        "resize_mode": "no",
                        **settings,
                    },
                ),
                installed("img2dataset"),
            )
            for name, kind, settings in IMG2DATASET
        ),
        (contestant("MDSWriter loop", "mds", peers, serial), installed("mosaicml-streaming")),
    ]


IMG2DATASET: tuple[tuple[str, Kind, dict[str, Any]], ...] = (
    ("img2dataset, decoded", "img2dataset-decoded", {"encode_quality": 95}),
    ("img2dataset, as they are", "img2dataset", {"disable_all_reencoding": True}),
)


def _peer_versions(python: Path | None) -> dict[str, str]:
    """The versions of the peers in the environment of an interpreter."""
    if python is None:
        return dict.fromkeys(PEERS, NOT_INSTALLED)
    code = (
        "import importlib.metadata as m, json, sys\n"
        "have = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({name: have.get(name) for name in sys.argv[1:]}))"
    )
    try:
        # Absolute, not resolved: the link is what makes it the interpreter of an environment.
        command = [str(python.absolute()), "-P", "-c", code, *PEERS]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        found: dict[str, str | None] = json.loads(answer.stdout)
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise UsageError(
            f"--peers-python {python}: not an interpreter of Python 3.11 or newer"
        ) from error
    return {name: version or NOT_INSTALLED for name, version in found.items()}


def _describe(workload: Workload) -> dict[str, Any]:
    num_photos = workload.num_photos[PHOTOS]
    return {
        "photos": num_photos,
        "source": "rendered bins, without the faulty ones; each linked to several ids",
        "mean_photo": f"{workload.num_bytes[PHOTOS] / num_photos / 1000:.1f} kB",
        "shards": f"{workload.shard_samples:,} photos each; MDSWriter's are of 64 MiB",
        "work": "from an S3 bucket over HTTP to shards in a folder, photos byte for byte",
    }


def _line(measured: Mapping[str, Any], describe: Any) -> str:
    return f"error: {measured['error']}" if "error" in measured else str(describe(measured))
