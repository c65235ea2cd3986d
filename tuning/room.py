"""What a Ray cluster has, and what of it a trial takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bintally.command import UsageError
from tuning.config import SearchConfig

__all__ = ["Room"]


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
        nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
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
        needs = {name: amount * workers for name, amount in worker.items()}
        room = min(int(total.get(name, 0.0) / amount + 1e-6) for name, amount in needs.items())
        if room < 1:
            told = ", ".join(f"{amount:g} {name}" for name, amount in needs.items())
            raise UsageError(
                f"a trial takes {told}, and the Ray cluster has {total.get('CPU', 0):g} CPU and "
                f"{total.get('GPU', 0):g} GPU; see --cpus-per-trial and --gpus-per-trial"
            )
        concurrency = min(config.concurrency or room, config.trials)
        return Room(max(1, int(max(nodes))), gpus, workers, worker, concurrency)

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
