"""What a Ray cluster has, and what of it a trial takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bintally.command import UsageError
from tuning.config import SearchConfig

__all__ = ["Room", "trials_at_a_time"]


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
class Room:
    """What the cluster has, and what of it a trial takes."""

    cores_of_a_node: int
    """Of the largest."""
    gpus: float
    """In all; 0 where none is to be used."""
    workers: int
    """Processes of a trial."""
    worker: Mapping[str, float]
    """What each of them takes: CPU, GPU."""
    concurrency: int
    """Trials at a time."""

    @staticmethod
    def of(config: SearchConfig, heads: bool) -> Room:
        """`heads` says that trials train no backbone. Raises `UsageError` where not even one trial
        has room."""
        import ray

        total = ray.cluster_resources()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = 0.0 if config.device == "cpu" else total.get("GPU", 0.0)
        if config.device == "cuda" and not gpus:
            raise UsageError("--device cuda: the Ray cluster has no GPU")
        share = config.gpus_per_trial
        if share < 0:
            share = (0.25 if heads else 1.0) if gpus else 0.0
        if share > 0 and not gpus:
            raise UsageError(f"--gpus-per-trial {share:g}: the Ray cluster has no GPU")
        worker = {"CPU": config.cpus_per_trial} | ({"GPU": share} if share else {})
        workers = config.workers_per_trial
        room = trials_at_a_time(nodes, worker, workers)
        if room < 1:
            what = "each of a trial's processes" if workers > 1 else "a trial"
            told = ", ".join(f"{amount:g} {name}" for name, amount in worker.items())
            have = "; ".join(f"{n.get('CPU', 0):g} CPU, {n.get('GPU', 0):g} GPU" for n in nodes)
            raise UsageError(
                f"{what} takes {told}, and the nodes of the Ray cluster have no room for "
                f"{workers if workers > 1 else 'it'} ({have}); see --cpus-per-trial, "
                "--gpus-per-trial and --workers-per-trial"
            )
        concurrency = min(config.concurrency or room, config.trials)
        cores = max(1, int(max(node.get("CPU", 0) for node in nodes)))
        return Room(cores, gpus, workers, worker, concurrency)

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
