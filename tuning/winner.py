"""The winner: trained as it was found, all of its epochs, and shown the test split once."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.config import FitConfig

__all__ = ["WINNER", "Won", "train_winner"]

WINNER = "winner"
"""Folder of the winner's run, in the search's."""
TEST = "test"
"""Folder of what it made of the test split, in the run's."""


@dataclass(frozen=True)
class Won:
    """What became of the winner."""

    best: dict[str, Any]
    """Its best epoch and validation metrics."""
    test: dict[str, Any] | None
    """`evaluation.json` of the test split; None where there is no such split."""
    files: dict[str, bytes]
    """The run's folder, by relative path: for a machine that does not share it."""


def train_winner(config: FitConfig, cache: str | None, home: str) -> Won:
    """Runs `fit` and evaluates its best checkpoint on test. A task of Ray's.

    `home` is the id of the node that the search was asked for on, to which the run must come.
    """
    import ray

    from bintally.places import open_place
    from sharding.dataset import read_dataset
    from training.fit import fit
    from training.measure import measure
    from training.results import BEST
    from training.shards import shard_cache

    if cache:
        os.environ["BINTALLY_CACHE"] = cache
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
            cache=shard_cache(config.cache, config.cache_gib),
        )
    elsewhere = ray.get_runtime_context().get_node_id() != home
    return Won(fitted.best, test, _files(config.run) if elsewhere else {})


def as_found(base: FitConfig, parameters: dict[str, Any]) -> FitConfig:
    """The training that found the winner, with a run's folder of its own."""
    return replace(base, **parameters, run=base.run / WINNER)


def _files(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file()
    }
