"""The Ray cluster of a search: which one it is, what it has, and what of it a trial takes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bintally.errors import UsageError
from bintally.ray_cluster import connect
from bintally.terminal.progress import say
from tuning.config import SearchConfig

__all__ = ["Resources", "connected", "trials_at_a_time"]


def trials_at_a_time(
    nodes: Sequence[Mapping[str, float]], worker: Mapping[str, float], workers: int
) -> int:
    """How many trials of so many workers there is room for. A worker lies on one node, whole."""
    fitting = (
        # Ray counts in ten thousandths.
        min(int(node.get(name, 0.0) / amount + 1e-6) for name, amount in worker.items())
        for node in nodes
    )
    return sum(fitting) // workers


@dataclass(frozen=True)
class Resources:
    """What the cluster has, and what of it a trial takes."""

    cores_of_a_node: int
    """Of the largest that has room for a worker."""
    gpus: float
    """In all; 0 where none is to be used."""
    workers: int
    """Processes of a trial."""
    worker: Mapping[str, float]
    """What each of them takes: CPU, GPU."""
    room: int
    """Trials at a time that the cluster has room for now."""
    concurrency: int
    """Trials at a time, at most: more than there is room for, as a cluster may grow. Groups of
    workers do without."""

    @staticmethod
    def of(config: SearchConfig, heads: bool) -> Resources:
        """`heads` says that trials train no backbone. Where there is no room, and Ray's autoscaler
        adds nodes, waits for them. Raises `UsageError` where not even one trial has room."""
        share, workers = config.gpus_per_trial, config.workers_per_trial
        flag = f"--gpus-per-trial {share:g}" if share > 0 else "--device cuda"
        if (share > 0 and config.device == "cpu") or (share == 0 and config.device == "cuda"):
            raise UsageError(
                f"--gpus-per-trial {share:g}: does not go with --device {config.device}"
            )
        nodes = _nodes()
        if share < 0:
            auto = any(node.get("GPU") for node in nodes) and config.device == "auto"
            share = (0.25 if heads else 1.0) if auto or config.device == "cuda" else 0.0
        worker = {"CPU": config.cpus_per_trial} | ({"GPU": share} if share else {})
        if not trials_at_a_time(nodes, worker, workers) and _autoscaled():
            nodes = _ask_for(worker, workers, config.concurrency or 1)
        gpus = sum(node.get("GPU", 0) for node in nodes) if share else 0
        if share and not gpus:
            raise UsageError(f"{flag}: the Ray cluster has no GPU")
        most = trials_at_a_time(nodes, worker, workers)
        if most < 1:
            what = "each of a trial's processes" if workers > 1 else "a trial"
            have = "; ".join(f"{n.get('CPU', 0):g} CPU, {n.get('GPU', 0):g} GPU" for n in nodes)
            raise UsageError(
                f"{what} takes {_describe(worker)}, and the nodes of the Ray cluster have no room "
                f"for {workers if workers > 1 else 'it'} ({have}); see --cpus-per-trial, "
                "--gpus-per-trial and --workers-per-trial"
            )
        concurrency = config.concurrency or config.lag
        if workers > 1:
            # Groups that have no room wait for it inside Ray Train, which gives up at some time.
            concurrency = min(concurrency, most)
        able = [node for node in nodes if trials_at_a_time([node], worker, 1)]
        cores = max(1, int(max(node.get("CPU", 0) for node in able)))
        return Resources(cores, gpus, workers, worker, most, concurrency)

    @property
    def gpus_of_a_trial(self) -> float:
        """Of all its workers together."""
        return self.worker.get("GPU", 0.0) * self.workers

    def of_a_trial(self) -> Any:
        """What the process takes that Ray Tune starts; a group's workers ask for their own."""
        from ray import tune

        if self.workers > 1:
            # A byte, for it may not be nothing; a core would be missing where the workers want it.
            return tune.PlacementGroupFactory([{"memory": 1}])
        return tune.PlacementGroupFactory([dict(self.worker)])


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """The Ray cluster that was asked for: the job's own, one there is, or one of this machine."""
    # Ray Tune would write files of its own for each epoch of each trial, and change the folder.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A cluster of one's own is for nothing else, and need not step back behind whatever runs.
    os.environ.setdefault("RAY_worker_niceness", "0")
    if address is None:
        address = "auto" if "RAY_ADDRESS" in os.environ else "local"
    connect(address)
    import ray

    try:
        yield
    finally:
        ray.shutdown()


NODES_S = 900.0
"""How long nodes may take that the autoscaler adds: clouds start one with a GPU in minutes."""


def _nodes() -> list[dict[str, float]]:
    """What each node of the cluster has."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _autoscaled() -> bool:
    """Whether Ray's autoscaler adds nodes to the cluster, which Ray has no function to ask for."""
    import ray
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    if status := _internal_kv_get(DEBUG_AUTOSCALING_STATUS):
        report = json.loads(status).get("autoscaler_report") or {}
        # Its nodes are of kinds that the cluster's configuration names; others have an id for one.
        kinds = (report.get("node_type_mapping") or {}).values()
        return any(not kind.startswith("node_") for kind in kinds)
    # The second autoscaler, which KubeRay has, says nothing there.
    return any("ray.io/node-group" in node.get("Labels", {}) for node in ray.nodes())


def _ask_for(worker: Mapping[str, float], workers: int, trials: int) -> list[dict[str, float]]:
    """Asks the autoscaler for so many trials' nodes; returns the cluster's when one trial has room,
    or when none came in time."""
    from ray.autoscaler.sdk import request_resources

    say(f"waiting for the Ray cluster's autoscaler to add nodes: a trial takes {_describe(worker)}")
    request_resources(bundles=[dict(worker)] * (workers * trials))
    until = time.monotonic() + NODES_S
    while not trials_at_a_time(nodes := _nodes(), worker, workers) and time.monotonic() < until:
        time.sleep(1)
    # From now on the trials themselves ask.
    request_resources(bundles=[])
    return nodes


def _describe(worker: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in worker.items())
