"""What is done once in a search, on a machine of the cluster: features, the preset, the winner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bintally.ray_cluster import own_errors
from bintally.storage.cache import use_cache
from training.config import FitConfig

__all__ = ["TEST", "Winner", "prepare_features", "result", "train_head", "train_winner"]

TEST = "test"
"""Folder of what the winner made of the test split, in its run's."""


@dataclass(frozen=True)
class Winner:
    """What became of the winner."""

    best: dict[str, Any]
    """Its best epoch and validation metrics."""
    test: dict[str, Any] | None
    """`evaluation.json` of the test split; None where there is no such split."""
    files: dict[str, bytes]
    """The run's folder, by relative path, for a machine that does not share it."""


def prepare_features(config: FitConfig, cache: str | None) -> tuple[Any, str]:
    """`HeadData`, and the id of the node on which it is."""
    import ray

    from training.heads import read_head_data
    from training.launch.distributed import alone

    use_cache(cache)
    data = read_head_data(config, alone(config.device))
    return data, ray.get_runtime_context().get_node_id()


def train_head(config: FitConfig, data: Any) -> dict[str, Any]:
    """The best epoch of a head, and its validation metrics."""
    from training.heads import HeadTraining
    from training.launch.distributed import alone

    training = HeadTraining(config, data, alone(config.device))
    while not training.ended:
        training.train_epoch()
    return training.best


def train_winner(config: FitConfig, cache: str | None, home: str) -> Winner:
    """Runs `fit`, and shows its best checkpoint the test split.

    `home` is the id of the node that the search was asked for on, to which the run must come.
    """
    import ray

    from bintally.dataset.manifest import read_dataset
    from bintally.dataset.shard_cache import shard_cache
    from bintally.storage.opening import open_place
    from training.fit import fit
    from training.inference.measure import measure
    from training.report.results import BEST

    use_cache(cache)
    fitted = fit(config)
    test = None
    if read_dataset(open_place(config.shards)).splits["test"].samples:
        test, _ = measure(
            config.run / BEST,
            config.shards,
            "test",
            config.run / TEST,
            precision=config.precision,
            engine_name=config.engine,
            device=config.device,
            on_bad_sample=config.on_bad_sample,
            cache=shard_cache(config.cache, config.cache_gib),
        )
    files = {}
    if ray.get_runtime_context().get_node_id() != home:
        paths = sorted(path for path in config.run.rglob("*") if path.is_file())
        files = {str(path.relative_to(config.run)): path.read_bytes() for path in paths}
    return Winner(fitted.best, test, files)


def result(reference: Any) -> Any:
    """What a task returned. Raises its own error, or `WorkError` where the task was lost."""
    import ray

    with own_errors("a task"):
        return ray.get(reference)
