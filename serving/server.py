"""One machine: a process that listens, beside those that count; drains on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import zipfile
from collections.abc import Iterator
from functools import partial

import uvicorn

from bintally.dataset.labels import are_counts
from bintally.errors import UsageError
from bintally.machine import num_cores, visible_gpus
from bintally.terminal.progress import say
from serving.config import ServeConfig
from serving.http.app import make_app
from serving.http.protocol import BACKLOG, Connections, GuardedProtocol, most_connections
from serving.service import Service
from serving.workers.pool import Shape

__all__ = ["serve"]

LAME_DUCK_S = 5.0
"""From SIGTERM on `/ping` says 503, and all else goes on for so long, for a balancer to notice."""
DRAIN_S = 15.0
"""For requests under way then: SageMaker kills after 30."""
KEEP_ALIVE_S = 75
"""Longer than load balancers keep a connection, so that they end it and not we."""


def serve(config: ServeConfig) -> None:
    """Serves until SIGTERM or SIGINT, then ends the requests under way; before that, SIGTERM leaves
    a balancer time to send its requests elsewhere.

    Raises `UsageError` for settings or a checkpoint that cannot be served, and `WorkError` where
    a worker dies before it can count.
    """
    config.check()
    if config.max_replicas:
        raise UsageError(
            f"--max-replicas {config.max_replicas}: only on a cluster (--ray ADDRESS); one machine "
            "has as many as --replicas says"
        )
    token = config.read_token()
    if not config.checkpoint.is_file():
        raise UsageError(f"{config.checkpoint}: no such file; name best.pt or last.pt of a run")
    # Whatever else may be wrong with it shows when a worker loads it.
    if not zipfile.is_zipfile(config.checkpoint):
        raise UsageError(f"{config.checkpoint}: not a checkpoint (best.pt or last.pt of a run)")
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    with config.bind() as listener:
        asyncio.run(_serve(config, token, listener))


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which end the process by the signal: a drained server
    has done what it was told, and ends with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(config: ServeConfig, token: str | None, listener: socket.socket) -> None:
    shape = Shape.of(config, num_cores(), len(visible_gpus()))
    service = Service(config, shape, token)
    server = _Server(
        uvicorn.Config(
            make_app(service),
            http=partial(GuardedProtocol, others=Connections(most_connections())),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            # Its warnings are about what strangers send.
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(DRAIN_S),
            backlog=BACKLOG,
        )
    )
    loop = asyncio.get_running_loop()

    def drain(lame_duck_s: float = 0.0) -> None:
        # Nobody sends requests to one that was not ready; told twice, it is to hurry.
        if service.state != "ready":
            lame_duck_s = 0.0
        service.state = "draining"
        loop.call_later(lame_duck_s, stop_listening)

    def stop_listening() -> None:
        server.should_exit = True

    loop.add_signal_handler(signal.SIGTERM, drain, LAME_DUCK_S)
    loop.add_signal_handler(signal.SIGINT, drain)
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    listener.listen()  # Now, so that whoever reads the line may come.
    say(f"listening on {url}, loading {config.checkpoint}")
    listening = asyncio.create_task(server.serve([listener]))
    counting = asyncio.create_task(_count(service, url, shape.number))
    try:
        await asyncio.wait({listening, counting}, return_when=asyncio.FIRST_COMPLETED)
        if counting.done():
            # It never ends by itself but with an error.
            drain()
            await listening
            await counting
    finally:
        counting.cancel()
        await asyncio.gather(counting, listening, return_exceptions=True)
        await service.stop()
    say("drained and stopped")


async def _count(service: Service, url: str, workers: int) -> None:
    """Starts the workers, then looks after the checkpoint, until it is cancelled."""
    release = await service.start()
    if service.state == "ready":
        counts = f"counts {release.classes[0]} to {release.classes[-1]}"
        if not are_counts(release.classes):
            counts = f"{len(release.classes):,} classes with names"
        say(f"ready on {url}: {counts}, checkpoint {release.sha256[:12]}, replicas {workers}")
    await service.watch()
