"""The same training as under torchrun, with its processes started by Ray Train on a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bintally.dataset.manifest import read_dataset
from bintally.errors import UsageError, WorkError
from bintally.ray_cluster import connect
from bintally.storage.cache import use_cache
from bintally.storage.opening import open_place
from training.config import FitConfig

__all__ = ["fit_in_group", "fit_on_ray", "settled"]

RESTARTS = 3
"""How often all workers begin again where they were, when one or its machine is lost."""


def fit_on_ray(config: FitConfig, address: str, workers: int) -> None:
    """Runs `fit` in as many workers of a Ray cluster, one on each GPU where there are any.

    The cluster's machines need this project installed, and must reach the shards and the run's
    folder under the same paths. Raises `UsageError` where no cluster answers, and what `fit` does.
    """
    import torch

    from training.launch.distributed import Process
    from training.survival.resumption import find_earlier
    from training.survival.run_lease import hold

    if workers < 1:
        raise UsageError(f"--workers {workers}: must be at least 1")
    connect(address)
    import ray

    on_gpu = config.device == "cuda" or (
        config.device == "auto" and ray.cluster_resources().get("GPU", 0) >= workers
    )
    dataset = read_dataset(open_place(config.shards))
    alone = Process(0, 1, 0, torch.device("cpu"))
    with hold(config.run, alone):
        find_earlier(config, dataset.sha256, alone)
    try:
        # Workers that begin again must not begin anew: what is to be cleared is cleared above.
        fit_in_group(
            replace(
                settled(config), resume=True, restart=False, device="cuda" if on_gpu else "cpu"
            ),
            workers,
            {"CPU": 1, "GPU": 1} if on_gpu else {"CPU": 1},
        )
    finally:
        ray.shutdown()


def settled(config: FitConfig) -> FitConfig:
    """The same with absolute paths: Ray's workers start in a folder of Ray's."""
    shards = config.shards if "://" in config.shards else str(Path(config.shards).absolute())
    weights = config.weights
    if weights not in ("imagenet", "none"):
        weights = str(Path(weights).absolute())
    return replace(config, shards=shards, weights=weights, run=config.run.absolute())


def fit_in_group(
    config: FitConfig,
    workers: int,
    resources: Mapping[str, float],
    to_report: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    until: int | None = None,
) -> None:
    """Runs `fit` in workers of the cluster that this process is connected to (Ray Train).

    `config` has absolute paths, and `resume`; `resources` are each worker's. In a trial of Ray
    Tune, what `to_report` makes of every epoch's line is reported to it, and the run pauses after
    the epoch `until`. Raises what `fit` does.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    on_gpu = config.device == "cuda"
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "config": asdict(config),
            "cache": os.environ.get("BINTALLY_CACHE"),
            "to_report": to_report,
            "until": until,
        },
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=on_gpu, resources_per_worker=dict(resources)
        ),
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        # What Ray keeps about the run lies beside what the run keeps of itself.
        run_config=RunConfig(
            name="ray",
            storage_path=str(config.run),
            failure_config=FailureConfig(max_failures=RESTARTS),
            callbacks=[TuneReportCallback()] if to_report else [],
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        # A worker's own error comes wrapped in several of Ray's.
        raise _own(error) or WorkError(f"Ray Train: {_last_line(error)}") from error


def _work(settings: dict[str, Any]) -> None:
    """What a worker does: `fit`, beside its peers."""
    import ray.train

    from training.fit import fit

    use_cache(settings["cache"])

    def report(line: dict[str, Any]) -> bool:
        # Ray Train wants it of every worker, and takes the first one's.
        ray.train.report(settings["to_report"](line))
        return bool(line["epoch"] == settings["until"])

    fit(FitConfig(**settings["config"]), report if settings["to_report"] else None)


def _own(error: BaseException) -> UsageError | WorkError | None:
    """The error of ours that lies in Ray's, if there is one: each worker's is wrapped by itself."""
    for failure in getattr(error, "worker_failures", {}).values():
        own = getattr(failure, "_base_exc", failure)
        if isinstance(own, UsageError | WorkError):
            return own
    return None


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
