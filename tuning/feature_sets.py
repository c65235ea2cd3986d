"""The features that a search's heads are trained on: a set for each way in which its trials see
photos, computed once and shared by all that do."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from bintally.terminal.progress import say
from training.config import FitConfig
from training.launch.ray_train import settled
from tuning.cluster import Resources
from tuning.space import Choice, Space
from tuning.tasks import prepare_features, result

__all__ = ["FeatureSets", "compute_feature_sets"]

DECIDING = (
    *("backbone", "weights", "image_size", "precision", "on_bad_sample"),
    "augment",
)
"""Settings that decide what a head is trained on."""


@dataclass(frozen=True)
class FeatureSets:
    """Where they are, by `feature_settings`."""

    references: dict[Any, Any]
    """To the `HeadData` in Ray's object store."""
    nodes: dict[Any, str]
    """Ids of the nodes that computed them, and have them on disk."""


def compute_feature_sets(
    base: FitConfig, space: Space, repeats: int, resources: Resources
) -> FeatureSets:
    """Computes what trials of a space and their repeats are trained on, each on a whole node; what
    an earlier search has computed there is read."""
    import ray

    from training.heads import feature_settings

    names = [name for name in DECIDING if name in space.dimensions]
    choices = []
    for name in names:
        dimension = space.dimensions[name]
        assert isinstance(dimension, Choice), "no range decides features"
        choices.append(dimension.values)
    trainings: dict[Any, FitConfig] = {}
    for values in product(*choices):
        training = replace(base, **dict(zip(names, values, strict=True)))
        for seed in range(base.seed, base.seed + repeats + 1):
            training = settled(replace(training, seed=seed))
            if (key := feature_settings(training)) is not None:
                trainings.setdefault(key, training)
    compute = ray.remote(
        num_cpus=resources.cores_of_a_node, num_gpus=1 if resources.gpus else 0, num_returns=2
    )(prepare_features)
    for training in trainings.values():
        drawn = f", drawn by seed {training.seed}" if training.weights == "none" else ""
        say(
            f"features of all photos once: {training.backbone}, weights {training.weights}{drawn}, "
            f"{training.image_size} pixels, {training.precision}"
        )
    # All at once: each waits for a node of its own.
    cache = os.environ.get("BINTALLY_CACHE")
    asked = {key: compute.remote(training, cache) for key, training in trainings.items()}
    nodes = {key: result(node) for key, (_, node) in asked.items()}
    return FeatureSets({key: reference for key, (reference, _) in asked.items()}, nodes)
