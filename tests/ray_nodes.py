"""Clusters of Ray for tests: nodes of `ray start`, which end with the test and end no other Ray."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY

__all__ = ["Cluster", "Node", "end_marked", "free_port", "marked", "ray_cluster"]

START_TIMEOUT_S = 120.0
OBJECT_STORE_BYTES = 128 * 2**20
LOCALHOST = "127.0.0.1"


class Node:
    """`ray start` in a process group of its own."""

    def __init__(self, options: list[str], environment: Mapping[str, str], folder: Path) -> None:
        # Ray gives workers groups of their own, so the group alone would not tell who belongs here.
        self._mark = f"BINTALLY_TEST_NODE={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        self._log = folder / f"{value}.log"
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                stdout=log,
                stderr=log,
                env={**environment, name: value},
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Until the cluster knows the node."""
        until = time.monotonic() + START_TIMEOUT_S
        while "Ray runtime started" not in self._log.read_text():
            alive = self._process.poll() is None and time.monotonic() < until
            assert alive, f"the node did not start: {self._log.read_text()}"
            time.sleep(0.1)

    def processes(self) -> list[int]:
        """The ids of the node's processes, its workers among them."""
        return marked(self._mark)

    def runs(self, task: str) -> bool:
        """Whether a worker of the node is at a task, "ray::" and its function's name."""
        for process in self.processes():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{process}/cmdline").read_bytes().startswith(task.encode()):
                    return True
        return False

    def kill(self) -> None:
        """Ends all of its processes at once, as a power cut does; returns when they are gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        end_marked(self._mark)


def marked(mark: str) -> list[int]:
    """The ids of the processes that have `mark`, NAME=VALUE, in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def end_marked(mark: str) -> None:
    """Kills the processes that have `mark` in their environment; returns when they are gone."""
    while left := marked(mark):
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)


class Cluster:
    """A head and further nodes on this machine."""

    def __init__(
        self,
        address: str,
        dashboard: str,
        environment: Mapping[str, str],
        nodes: list[Node],
        add: Callable[[], None],
    ) -> None:
        self.address = address
        """For `--ray`."""
        self.dashboard = dashboard
        """Where jobs are sent, if it was asked for."""
        self.environment = environment
        """For the processes that connect."""
        self.nodes = nodes
        """The head is the first."""
        self.add = add
        """Starts a further node; returns when all know it."""


@contextlib.contextmanager
def ray_cluster(
    num_nodes: int,
    *,
    cores: int = 1,
    dashboard: bool = False,
    token: str = "",
    adds: Mapping[str, float] | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Cluster]:
    """Starts a head and `num_nodes - 1` further nodes of so many cores, all with these environment
    variables; all know each other when it yields, and none is left when it is over. Ray's
    autoscaler may add one that has `adds`."""
    with (
        # In /tmp whatever TMPDIR says: a socket's path may have 107 bytes.
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as name,
        contextlib.ExitStack() as stack,
    ):
        # A token of this machine's user would be asked for by the head, and not sent by clients.
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": name}
        # Ray gives a node half a minute, which is little beside other work.
        environment |= {
            "RAY_raylet_start_wait_time_s": str(int(START_TIMEOUT_S)),
            **(variables or {}),
        }
        if token:
            environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        address = f"{LOCALHOST}:{free_port()}"
        size = [f"--num-cpus={cores}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        head = [
            "--head",
            f"--port={address.rpartition(':')[2]}",
            f"--include-dashboard={dashboard}",
        ]
        head += [f"--ray-client-server-port={free_port()}"]
        jobs_port = free_port()
        head += [f"--dashboard-port={jobs_port}"]
        if adds is not None:
            config = Path(name) / "autoscaling.json"
            config.write_text(json.dumps(_autoscaling(address, cores, adds)))
            head += [f"--autoscaling-config={config}"]
            environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        nodes: list[Node] = []

        def add(role: Sequence[str] = (f"--address={address}",)) -> None:
            agent = [f"--dashboard-agent-listen-port={free_port()}"]
            node = Node([*role, *size, *agent], environment, Path(name))
            stack.callback(node.kill)
            node.wait_until_ready()
            nodes.append(node)

        add(head)
        for _ in range(num_nodes - 1):
            add()
        yield Cluster(address, f"http://{LOCALHOST}:{jobs_port}", environment, nodes, add)


def _autoscaling(address: str, cores: int, adds: Mapping[str, float]) -> dict[str, Any]:
    """A cluster's configuration, as `ray up` reads it, with Ray's provider of nodes that are
    processes of this machine."""
    kinds = {
        "ray.head.default": {"resources": {"CPU": cores}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": dict(adds), "node_config": {}, "min_workers": 0, "max_workers": 1},
    }
    return {
        "cluster_name": "test",
        "max_workers": 1,
        "idle_timeout_minutes": 1,
        "provider": {"type": "fake_multinode", "gcs_address": address},
        "available_node_types": kinds,
        "head_node_type": "ray.head.default",
        "auth": {},
        "upscaling_speed": 1.0,
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server((LOCALHOST, 0)) as free:
        port: int = free.getsockname()[1]
        return port
