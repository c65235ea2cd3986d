"""A cluster: the same service as an application of Ray Serve, behind its proxies.

A replica there is what a server is on one machine, but for the listening: it has requests, a
batcher and a worker of its own. `serve deploy serving/cluster.yaml` deploys it, RayService does
(both by `serving.cluster:application`), and `bintally serve --ray ADDRESS`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from typing import Any

import ray
from pydantic import TypeAdapter, ValidationError
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, HTTPOptions
from ray.serve.schema import LoggingConfig
from starlette.applications import Starlette

from bintally.errors import UsageError, WorkError
from bintally.ray_cluster import connect, first_line
from bintally.terminal.progress import say
from serving.config import ServeConfig
from serving.http.app import make_app
from serving.http.proxy import GUARD, GUARD_VARIABLE
from serving.service import Service
from serving.workers.pool import Shape

__all__ = ["application", "deploy"]

APPLICATION = "bintally"
CPUS = 1
"""Of a replica."""
MOST_REQUESTS = 1000
"""Of a replica: it says itself when too many photos wait."""
BATCHES_WANTED = 1.5
"""Of requests for each replica, where load decides how many there are: at two, photos wait."""
UPSCALE_DELAY_S, DOWNSCALE_DELAY_S = 10.0, 300.0
HEALTH_PERIOD_S = 5.0
"""At the third bad look, Serve replaces a replica; its worker has come back by then."""
DRAIN_S = 30.0
KEEP_ALIVE_S = 75
"""Longer than load balancers keep a connection."""


@serve.ingress()
class _Replica:
    """Counts, for as long as Serve keeps it."""

    # Serve awaits it.
    async def __init__(  # type: ignore[misc]
        self, config: ServeConfig, shape: Shape, token: str | None
    ) -> None:
        self._service = Service(config, shape, token)
        await self._service.start()
        self._watching = asyncio.create_task(self._service.watch())

    def __serve_build_asgi_app__(self) -> Starlette:
        return make_app(self._service)

    async def check_health(self) -> None:
        """Serve asks; what is raised is bad health."""
        ready, state = self._service.readiness
        if not ready:
            raise RuntimeError(state["status"])

    async def __del__(self) -> None:
        if hasattr(self, "_watching"):
            self._watching.cancel()
            await self._service.stop()


def application(args: dict[str, Any]) -> Application:
    """What Serve is to deploy; `args` are settings of `bintally serve`, called as its flags are
    (`max_replicas` for `--max-replicas`), of which `checkpoint` has to be there. The token is read
    where Serve calls this, on a node of the cluster.

    Raises `UsageError` for settings that make no sense.
    """
    try:
        config = TypeAdapter(ServeConfig).validate_python(args)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"args: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return _bind(config)


def deploy(config: ServeConfig) -> None:
    """Deploys the application on the cluster at `config.ray`; returns when it is ready.

    Raises `UsageError` where there is none, or for settings that make no sense, and `WorkError`
    where the replicas do not start.
    """
    assert config.ray is not None
    config.check()
    connect(config.ray)
    # What Serve tells on its way is of no use to the user, and starts with INFO.
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        serve.start(
            proxy_location="EveryNode",
            http_options=HTTPOptions(
                host=config.host, port=config.port, keep_alive_timeout_s=KEEP_ALIVE_S
            ),
        )
        there = replace(config, checkpoint=config.checkpoint.absolute())
        serve.run(_bind(there), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise WorkError(f"--ray {config.ray}: not deployed: {first_line(error)}") from error
    say(f"ready on port {config.port} of every node, by Ray Serve's proxies")


def _bind(config: ServeConfig) -> Application:
    config.check()
    _warn_unless_guarded()
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    # Of a replica, which has one worker.
    shape = Shape.of(replace(config, replicas=1), CPUS, num_gpus)
    least = max(1, config.replicas)
    if config.max_replicas > least:
        number: dict[str, Any] = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=least,
                max_replicas=config.max_replicas,
                target_ongoing_requests=BATCHES_WANTED * shape.batch,
                upscale_delay_s=UPSCALE_DELAY_S,
                downscale_delay_s=DOWNSCALE_DELAY_S,
            )
        }
    else:
        number = {"num_replicas": least}
    deployment = serve.deployment(
        _Replica,
        name=APPLICATION,
        ray_actor_options={"num_cpus": CPUS, "num_gpus": shape.gpus},
        max_ongoing_requests=MOST_REQUESTS,
        health_check_period_s=HEALTH_PERIOD_S,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=DRAIN_S,
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
        **number,
    )
    return deployment.bind(config, shape, config.read_token())


def _warn_unless_guarded() -> None:
    """Serve's proxies have the environment of their node's Ray, as any task has."""
    told = ray.get(ray.remote(num_cpus=0)(os.getenv).remote(GUARD_VARIABLE))
    if told != GUARD:
        say(
            f"warning: this cluster's Ray was not started with {GUARD_VARIABLE}={GUARD}; without "
            "it, Serve's proxies read requests of any size, and wait for slow ones for ever"
        )
