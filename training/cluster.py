"""The same training as under torchrun, with its processes started by Ray Train on a cluster."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bintally.cluster import connect
from bintally.command import UsageError, WorkError
from bintally.places import open_place
from sharding.dataset import read_dataset
from training.config import FitConfig

__all__ = ["fit_on_ray"]

RESTARTS = 3
"""How often all workers begin again where they were, when one or its machine is lost."""


def fit_on_ray(config: FitConfig, address: str, workers: int) -> None:
    """Runs `fit` in as many workers of a Ray cluster, one on each GPU where there are any.

    The cluster's machines need this project installed, and must reach the shards and the run's
    folder under the same paths. Raises `UsageError` where no cluster answers, and what `fit` does.
    """
    import ray
    import torch
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from training.distributed import Process
    from training.resumption import find_earlier

    if workers < 1:
        raise UsageError(f"--workers {workers}: must be at least 1")
    connect(address)
    on_gpu = config.device == "cuda" or (
        config.device == "auto" and ray.cluster_resources().get("GPU", 0) >= workers
    )
    # Workers start in a folder of Ray's; a path here must mean the same there.
    shards = config.shards if "://" in config.shards else str(Path(config.shards).absolute())
    settled = replace(
        config,
        shards=shards,
        run=config.run.absolute(),
        weights=_absolute(config.weights),
        device="cuda" if on_gpu else "cpu",
        # Workers that begin again must not begin anew: what is to be cleared is cleared here.
        resume=True,
    )
    dataset = read_dataset(open_place(config.shards))
    find_earlier(config, dataset.sha256, Process(0, 1, 0, torch.device("cpu")))
    trainer = TorchTrainer(
        _work,
        train_loop_config={"config": asdict(settled), "cache": os.environ.get("BINTALLY_CACHE")},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpu),
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        # What Ray keeps about the run lies beside what the run keeps of itself.
        run_config=RunConfig(
            name="ray",
            storage_path=str(settled.run),
            failure_config=FailureConfig(max_failures=RESTARTS),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        # A worker's own error comes wrapped in several of Ray's.
        raise _own(error) or WorkError(f"--ray {address}: {_last_line(error)}") from error
    finally:
        ray.shutdown()


def _work(settings: dict[str, Any]) -> None:
    """What a worker does: `fit`, beside its peers."""
    from training.fit import fit

    if settings["cache"]:
        os.environ["BINTALLY_CACHE"] = settings["cache"]
    fit(FitConfig(**settings["config"]))


def _absolute(weights: str) -> str:
    return weights if weights in ("imagenet", "none") else str(Path(weights).absolute())


def _own(error: BaseException) -> UsageError | WorkError | None:
    """The error of ours that lies in Ray's, if there is one: each worker's is wrapped by itself."""
    for failure in getattr(error, "worker_failures", {}).values():
        own = getattr(failure, "_base_exc", failure)
        if isinstance(own, UsageError | WorkError):
            return own
    return None


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
