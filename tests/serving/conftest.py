"""A trained checkpoint, and servers in processes of their own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measure import process_memory_mib
from bintally.dataset.photo import BadPhoto, check_photo
from serving.http.proxy import GUARD, GUARD_VARIABLE
from tests.conftest import REPOSITORY
from tests.ray_nodes import Cluster, free_port, ray_cluster

Json = Any


@dataclass(frozen=True)
class Reply:
    """An answer of a server."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Json:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        reason: str = self.json["error"]["reason"]
        return reason


class Client:
    """Asks a server, whatever its size."""

    def __init__(self, checkpoint: Path, port: int) -> None:
        self.checkpoint, self.port = checkpoint, port

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, None, headers)

    def post(
        self, body: bytes, content_type: str = "image/jpeg", query: str = "", **more: str
    ) -> Reply:
        headers = {
            "Content-Type": content_type,
            **{k.replace("_", "-"): v for k, v in more.items()},
        }
        return self.ask("POST", f"/invocations{query}", body, headers)

    def ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()

    def processes(self) -> list[int]:
        """The ids of the server's processes."""
        raise NotImplementedError

    def workers(self) -> list[int]:
        """The ids of those of them that count."""
        found = []
        for process in self.processes():
            with contextlib.suppress(OSError):
                if b"serving.workers.worker" in Path(f"/proc/{process}/cmdline").read_bytes():
                    found.append(process)
        return found

    def memory_mib(self) -> float:
        """What they take together."""
        return sum(map(process_memory_mib, self.processes()))


class Server(Client):
    """`python -m serving` in a process of its own."""

    def __init__(self, checkpoint: Path, log: Path, *options: object, **variables: str) -> None:
        self._log = log
        self._mark = uuid.uuid4().hex
        command = [sys.executable, "-m", "serving", "--checkpoint", str(checkpoint), "--port", "0"]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*command, *map(str, options)],
                cwd=REPOSITORY,
                stdout=file,
                stderr=file,
                env={**os.environ, **variables, "BINTALLY_TEST": self._mark},
            )
        port = int(self.wait_for_log("listening on http://127.0.0.1:").split(",")[0])
        super().__init__(checkpoint, port)

    def wait_for_log(self, words: str) -> str:
        """What follows them in their line of the log."""
        for _ in range(1200):
            found = self.log.partition(words)[2]
            if "\n" in found:
                return found.split("\n")[0]
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        ended = self.process.poll()
        raise AssertionError(f"never said {words!r} (exit code {ended}): {self.log}")

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_until_ready(self) -> None:
        self.wait_for_log("ready on ")

    def processes(self) -> list[int]:
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if (
                    folder.name.isdigit()
                    and self._mark.encode() in (folder / "environ").read_bytes()
                ):
                    found.append(int(folder.name))
        return found

    def stop(self) -> None:
        """Drains it at once, without time for a balancer."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        finally:
            self.process.kill()


class Deployed(Client):
    """An application on a cluster of Ray, which `python -m serving --ray` has deployed."""

    def __init__(self, checkpoint: Path, cluster: Cluster, *options: object) -> None:
        super().__init__(checkpoint, free_port())
        self.cluster = cluster
        command = [sys.executable, "-m", "serving", "--checkpoint", str(checkpoint)]
        command += ["--ray", cluster.address, "--port", str(self.port)]
        subprocess.run(
            [*command, *map(str, options)],
            cwd=REPOSITORY,
            env=dict(cluster.environment),
            check=True,
            timeout=240,
        )

    def processes(self) -> list[int]:
        return [process for node in self.cluster.nodes for process in node.processes()]


StartServer = Callable[..., Server]


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Starts servers, and stops those that still run in the end."""
    servers: list[Server] = []

    def start(checkpoint: Path, *options: object, **variables: str) -> Server:
        log = tmp_path_factory.mktemp("server") / "log"
        servers.append(Server(checkpoint, log, *options, **variables))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.stop()


def train(shards: Path, run: Path, seed: int) -> Path:
    from tests.training.runs import settings
    from training.fit import fit

    fit(settings(shards, run, epochs=1, precision="auto", seed=seed))
    return run / "best.pt"


@pytest.fixture(scope="session")
def checkpoint(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that was trained a little."""
    return train(shards, tmp_path_factory.mktemp("run"), seed=0)


@pytest.fixture(scope="session")
def other_checkpoint(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one."""
    return train(shards, tmp_path_factory.mktemp("other"), seed=1)


NARROW = (
    *("--replicas", 1, "--max-megabytes", 2, "--max-photos", 8, "--max-queue", 16),
    *("--max-megapixels", 1, "--timeout-s", 6),
)
"""Limits that are reached."""


@pytest.fixture(scope="session")
def one_machine(checkpoint: Path, start_server: StartServer) -> Server:
    """A server that tests share and leave as it is; of narrow limits."""
    server = start_server(checkpoint, *NARROW)
    server.wait_until_ready()
    return server


@pytest.fixture(scope="session")
def on_cluster(checkpoint: Path) -> Iterator[Client]:
    """The same on a cluster, which has one node."""
    limits = {"BINTALLY_PROXY": '{"max_megabytes": 2, "timeout_s": 6}', GUARD_VARIABLE: GUARD}
    with ray_cluster(1, cores=2, variables=limits) as cluster:
        yield Deployed(checkpoint, cluster, *NARROW)


@pytest.fixture(params=["one machine", pytest.param("cluster", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest) -> Client:
    """A server of either size, which tests share and leave as it is; of narrow limits."""
    name = "one_machine" if request.param == "one machine" else "on_cluster"
    server: Client = request.getfixturevalue(name)
    return server


@pytest.fixture(scope="session")
def photos(bucket: Path) -> list[bytes]:
    """Some good photos."""
    found = []
    for path in sorted((bucket / "bin-images").iterdir()):
        with contextlib.suppress(BadPhoto):
            check_photo(path.read_bytes())
            found.append(path.read_bytes())
    return found[:20]
