"""The replicas: a Ray of this server's own, with one Ray Serve deployment in it.

Ray Serve's HTTP proxy is left out; see the README for the measurement. It would also read bodies of
any size into memory, and wait for slow ones for ever.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bintally.errors import WorkError
from bintally.machine import num_cores
from bintally.ray_cluster import connect, first_line
from serving.answer import Counted
from serving.config import ServeConfig
from serving.replica import Replica, ReplicaConfig

__all__ = ["Fleet", "ReplicaLost", "Shape"]

APPLICATION, DEPLOYMENT = "bintally", "Replica"
HEALTH_PERIOD_S = 1.0
HEALTH_TIMEOUT_S = 20.0
STOP_WAIT_S = 2.0
OBJECT_STORE_BYTES = 128 * 2**20
"""Holds the batches on their way, and nothing else."""
MOST_CPU_REPLICAS = 4
"""Unless more are asked for: each takes nearly a gigabyte."""


class ReplicaLost(Exception):
    """The replicas that had a batch died, twice over."""


@dataclass(frozen=True)
class Shape:
    """How many replicas of which kind: what the settings mean on this machine."""

    least: int
    most: int
    gpus: float
    """Of a replica."""
    threads: int
    """Of a replica."""
    batch: int

    @classmethod
    def of(cls, config: ServeConfig, num_cores: int, num_gpus: int) -> Shape:
        """Pure. A CPU replica does best with a core to itself."""
        gpus = config.gpus_per_replica
        if gpus < 0:
            gpus = 1.0 if num_gpus else 0.0
        fitting = int(num_gpus / gpus) if gpus else min(num_cores, MOST_CPU_REPLICAS)
        least = config.replicas or max(1, fitting)
        return cls(
            least=least,
            most=max(least, config.max_replicas),
            gpus=gpus,
            threads=max(1, num_cores // least),
            batch=config.batch or (32 if gpus else 8),
        )


class Fleet:
    """Starts, asks, counts and stops the replicas. All methods but `count` block."""

    def __init__(self, config: ServeConfig, releases: Path) -> None:
        self._config, self._releases = config, releases
        self._handle: Any = None
        self._asking = threading.Lock()

    def start_ray(self) -> Shape:
        """Starts Ray's processes, and Ray Serve in them, in some seconds; what is to run there."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's default is 15, below whatever else a machine does. Counting is what this one is for.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # How many replicas there are is ours to say; Ray need not ration cores.
        options = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
        connect("local", include_dashboard=False, **options)
        import ray
        from ray import serve
        from ray.exceptions import RayActorError

        # Ray Serve leaves a question to a replica that died lying, and asyncio would tell of it.
        logging.getLogger("asyncio").addFilter(
            lambda said: not (said.exc_info and isinstance(said.exc_info[1], RayActorError))
        )
        # What Ray Serve tells on its way is of no use to the user, and starts with INFO.
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        try:
            serve.start(proxy_location="Disabled")
        except Exception as error:  # Ray raises a bare one where its processes die at the start.
            raise WorkError(
                f"Ray Serve does not start on this machine: {first_line(error)}"
            ) from error
        return Shape.of(self._config, num_cores(), int(ray.cluster_resources().get("GPU", 0)))

    def deploy(self, shape: Shape) -> None:
        """Starts the replicas; returns when all that there are at first can count."""
        from ray import serve
        from ray.serve.config import AutoscalingConfig
        from ray.serve.schema import LoggingConfig

        config = self._config
        replica = ReplicaConfig(
            releases=str(self._releases),
            gpu=shape.gpus > 0,
            engine=config.engine,
            precision=config.precision,
            batch_size=shape.batch,
            threads=shape.threads,
        )
        if shape.most > shape.least:
            number: dict[str, Any] = {
                "autoscaling_config": AutoscalingConfig(
                    min_replicas=shape.least,
                    max_replicas=shape.most,
                    # Two batches with a replica mean that photos wait (see batcher.py).
                    target_ongoing_requests=1.5,
                    upscale_delay_s=5.0,
                    downscale_delay_s=120.0,
                )
            }
        else:
            number = {"num_replicas": shape.least}
        deployment = serve.deployment(
            Replica,
            name=DEPLOYMENT,
            ray_actor_options={"num_cpus": 0, "num_gpus": shape.gpus},
            max_ongoing_requests=2,
            health_check_period_s=HEALTH_PERIOD_S,
            health_check_timeout_s=HEALTH_TIMEOUT_S,
            graceful_shutdown_wait_loop_s=STOP_WAIT_S / 4,
            graceful_shutdown_timeout_s=STOP_WAIT_S,
            logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
            **number,
        )
        try:
            self._handle = serve.run(deployment.bind(replica), name=APPLICATION, route_prefix=None)
        except RuntimeError as error:
            raise WorkError(f"the replicas do not start: {error}") from error

    def running(self) -> int:
        """How many replicas can count now."""
        from ray import serve

        with self._asking:
            application = serve.status().applications.get(APPLICATION)
        deployment = application.deployments.get(DEPLOYMENT) if application else None
        return deployment.replica_states.get("RUNNING", 0) if deployment else 0

    async def count(self, photos: Sequence[bytes]) -> Counted:
        """Has a batch counted. Counting changes nothing, so a batch whose replica dies is counted
        again, once: photos that kill replicas should not kill them all.

        Raises `ReplicaLost`.
        """
        from ray.exceptions import RayError, RayTaskError

        for _ in range(2):
            try:
                counted: Counted = await self._handle.count.remote(photos)
            except RayTaskError:
                raise
            except RayError as error:
                lost = error
            else:
                return counted
        raise ReplicaLost(str(lost).splitlines()[0])

    def stop(self) -> None:
        """Ends Ray and all of its processes, as far as they were started."""
        import ray

        # Whoever asks Ray something while it goes waits for ever.
        self._asking.acquire(timeout=STOP_WAIT_S)
        # Not serve.shutdown() before it: that waits for seconds, for replicas that have no work.
        ray.shutdown()
