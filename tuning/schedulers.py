"""Which trials go on: all of them, those that keep up, or those that inherit from better ones."""

from __future__ import annotations

from typing import Any

from bintally.errors import UsageError
from training.metrics import LOWER_IS_BETTER
from tuning.config import SearchConfig
from tuning.space import Choice, Space

__all__ = ["make_scheduler"]

GRACE_EPOCHS = 4
"""Epochs that ASHA leaves a trial alone for, and PBT again and again."""
REDUCTION = 3
"""Of the trials that come to a rung, ASHA lets one in so many go on."""
MOST_EPOCHS = 100_000
"""A trial ends by its own number of epochs, not by ASHA's."""
INHERITABLE = ("lr", "backbone_lr", "weight_decay", "label_smoothing", "ema")
"""Settings that may change in mid-training, without another model, order or schedule's length."""


def make_scheduler(config: SearchConfig, space: Space) -> Any:
    """A scheduler of Ray Tune: none, ASHA (Li et al. 2020) or PBT (Jaderberg et al. 2017).

    Raises `UsageError` where PBT would have nothing to change.
    """
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining

    mode = "min" if config.metric in LOWER_IS_BETTER else "max"
    if config.scheduler == "asha":
        return ASHAScheduler(
            metric="value",
            mode=mode,
            grace_period=GRACE_EPOCHS,
            max_t=MOST_EPOCHS,
            reduction_factor=REDUCTION,
        )
    if config.scheduler == "pbt":
        return PopulationBasedTraining(
            time_attr="training_iteration",
            metric="value",
            mode=mode,
            # All are compared after the same number of epochs.
            synch=True,
            perturbation_interval=GRACE_EPOCHS,
            hyperparam_mutations={"parameters": _mutations(space)},
        )
    return FIFOScheduler()


def _mutations(space: Space) -> dict[str, Any]:
    """What a member of the population may change in mid-training: not how long it lasts."""
    from ray import tune

    mutations: dict[str, Any] = {}
    for name, dimension in space.dimensions.items():
        if name not in INHERITABLE:
            continue
        if isinstance(dimension, Choice):
            mutations[name] = [*dimension.values]
        elif dimension.log:
            mutations[name] = tune.loguniform(dimension.low, dimension.high)
        else:
            mutations[name] = tune.uniform(dimension.low, dimension.high)
    if not mutations:
        raise UsageError(
            "--scheduler pbt: the space has nothing to change in mid-training; it could have "
            f"{', '.join(INHERITABLE)}"
        )
    return mutations
