"""What a Ray cluster has, and what of it a trial takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bintally.command import UsageError
from tuning.config import SearchConfig

__all__ = ["Room"]


@dataclass(frozen=True)
class Room:
    """What the cluster has, and what of it a trial takes."""

    cores_of_a_node: int
    gpus: float
    concurrency: int

    @staticmethod
    def of(config: SearchConfig) -> Room:
        """Raises `UsageError` where not even one trial has room."""
        import ray

        total = ray.cluster_resources()
        nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        gpus = 0.0 if config.device == "cpu" else total.get("GPU", 0.0)
        if config.device == "cuda" and not gpus:
            raise UsageError("--device cuda: the Ray cluster has no GPU")
        alone = Room(max(1, int(max(nodes))), gpus, 1)
        needs = {
            name: amount * config.workers_per_trial
            for name, amount in alone.resources(config).items()
        }
        room = min(int(total.get(name, 0.0) / amount + 1e-6) for name, amount in needs.items())
        if room < 1:
            told = ", ".join(f"{amount:g} {name}" for name, amount in needs.items())
            raise UsageError(
                f"a trial takes {told}, and the Ray cluster has {total.get('CPU', 0):g} CPU and "
                f"{total.get('GPU', 0):g} GPU; see --cpus-per-trial and --gpus-per-trial"
            )
        return replace(alone, concurrency=min(config.concurrency or room, config.trials))

    def gpus_of_a_trial(self, config: SearchConfig) -> float:
        """Of all its workers together."""
        return self.resources(config).get("GPU", 0.0) * config.workers_per_trial

    def resources(self, config: SearchConfig) -> dict[str, float]:
        """Of each worker of a trial."""
        heads = config.base(config.read_space()).trainable == "head"
        share = config.gpus_per_trial
        if share < 0:
            share = (0.25 if heads else 1.0) if self.gpus else 0.0
        if share > 0 and not self.gpus:
            raise UsageError(f"--gpus-per-trial {share:g}: the Ray cluster has no GPU")
        return {"CPU": config.cpus_per_trial} | ({"GPU": share} if share else {})

    def trial_resources(self, config: SearchConfig) -> Any:
        """Of the process that Ray Tune starts; a group's workers ask for their own."""
        from ray import tune

        if config.workers_per_trial > 1:
            # A byte, for it may not be nothing; a core would be missing where the workers want it.
            return tune.PlacementGroupFactory([{"memory": 1}])
        return tune.PlacementGroupFactory([self.resources(config)])
