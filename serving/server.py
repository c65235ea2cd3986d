"""The process: starts the replicas, listens, watches the checkpoint, and drains on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn

import uvicorn

from bintally.dataset.labels import are_counts
from bintally.errors import UsageError, WorkError
from bintally.machine import open_files_limit
from bintally.terminal.progress import say
from serving.batcher import Batcher
from serving.config import ServeConfig
from serving.fleet import Fleet
from serving.http.app import make_app
from serving.http.protocol import Connections, GuardedProtocol
from serving.releases import Check, ReleaseWatcher
from serving.service import Service

__all__ = ["serve"]

START_S = 300.0
"""For Ray, the checkpoint and the replicas; some seconds do where all is well."""
LOOK_EVERY_S = 1.0
LOST_S = 30.0
"""For Ray to say how many replicas run: milliseconds, seconds where its controller died."""
LAME_DUCK_S = 5.0
"""From SIGTERM on `/ping` says 503, and all else goes on for so long, for a balancer to notice."""
DRAIN_S = 15.0
"""For requests under way then, and `STOP_S` for Ray: SageMaker kills after 30."""
STOP_S = 8.0
KEEP_ALIVE_S = 75
"""Longer than load balancers keep a connection, so that they end it and not we."""
MOST_CONNECTIONS = 1000
BACKLOG = 128
"""Connections that are accepted at a time."""
OTHER_FILES = 200
"""Open files beside connections, Ray's and those of checkpoints; a hundred are usual."""


def serve(config: ServeConfig) -> None:
    """Serves until SIGTERM or SIGINT, then ends the requests under way; before that, SIGTERM leaves
    a balancer time to send its requests elsewhere.

    Raises `UsageError` for settings or a checkpoint that cannot be served, and `WorkError` where
    Ray does not start. A Ray that dies on the way ends the process with 1, for its supervisor.
    """
    config.check()
    token = config.read_token()
    if not config.checkpoint.is_file():
        raise UsageError(f"{config.checkpoint}: no such file; name best.pt or last.pt of a run")
    # Whatever else may be wrong with it shows when it is loaded, beside the start of Ray.
    if not zipfile.is_zipfile(config.checkpoint):
        raise UsageError(f"{config.checkpoint}: not a checkpoint (best.pt or last.pt of a run)")
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    with (
        config.bind() as listener,
        tempfile.TemporaryDirectory(prefix="bintally-serving-") as folder,
    ):
        asyncio.run(_serve(config, Service(config.limits, token), listener, Path(folder)))


class _RayLost(WorkError):
    """Ray is in a disorder that only another start mends; that is for whoever started us."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which end the process by the signal: a drained server
    has done what it was told, and ends with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(
    config: ServeConfig, service: Service, listener: socket.socket, folder: Path
) -> None:
    server = _Server(
        uvicorn.Config(
            make_app(service),
            http=partial(GuardedProtocol, others=Connections(_most_connections())),  # type: ignore[arg-type]
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
    fleet = Fleet(config, folder)

    def drain(lame_duck_s: float = 0.0) -> None:
        # Nobody sends requests to one that was not ready; told twice, it is to hurry.
        if service.state != "ready":
            lame_duck_s = 0.0
        service.state = "draining"
        asyncio.get_running_loop().call_later(lame_duck_s, stop_listening)

    def stop_listening() -> None:
        server.should_exit = True

    _on_signals(drain)
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    listener.listen()  # Now, so that whoever reads the line may come.
    say(f"listening on {url}, loading {config.checkpoint}")
    listening = asyncio.create_task(server.serve([listener]))
    running = asyncio.create_task(_run(config, service, fleet, folder, url, drain))
    try:
        await asyncio.wait({listening, running}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            # It never ends by itself but with an error.
            drain()
            await listening
            await running
    except _RayLost as error:
        _leave(f"error: {error}", folder, error.exit_code)
    finally:
        running.cancel()
        await asyncio.gather(running, listening, return_exceptions=True)
        stopping = asyncio.to_thread(fleet.stop)
        try:
            await asyncio.wait_for(stopping, STOP_S)
        except TimeoutError:
            _leave("stopped, without Ray's good-bye", folder, 0)
    say("drained and stopped")


def _leave(last_words: str, folder: Path, code: int) -> NoReturn:
    """Ends the process at once: its threads may be waiting for a Ray in disorder, and would be
    waited for. Ray's reaper ends Ray's processes."""
    say(last_words)
    shutil.rmtree(folder, ignore_errors=True)
    sys.stderr.flush()
    os._exit(code)


def _on_signals(drain: Callable[[float], None]) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, drain, LAME_DUCK_S)
    loop.add_signal_handler(signal.SIGINT, drain, 0.0)


def _most_connections() -> int:
    """`MOST_CONNECTIONS`, or as many as this process may have files open for."""
    return max(1, min(MOST_CONNECTIONS, open_files_limit() - BACKLOG - OTHER_FILES))


async def _run(
    config: ServeConfig,
    service: Service,
    fleet: Fleet,
    folder: Path,
    url: str,
    drain: Callable[[float], None],
) -> None:
    """Starts the replicas, then looks after them and the checkpoint, until it is cancelled."""
    watch = ReleaseWatcher(config.checkpoint)
    try:
        async with asyncio.timeout(START_S):
            # One after the other: of 60 processes that were started while Ray was, one died.
            check = await asyncio.to_thread(Check, config.checkpoint, folder)
            release, shape = await asyncio.gather(
                asyncio.to_thread(check.accept), asyncio.to_thread(fleet.start_ray)
            )
            service.release = release
            # Ray has put a handler of its own in our place, which prints a stack.
            _on_signals(drain)
            await asyncio.to_thread(fleet.deploy, shape)
    except TimeoutError:
        raise _RayLost(f"the replicas were not ready within {START_S:g} s") from None
    service.replicas = shape.least
    service.batcher = Batcher(
        fleet.count,
        lambda: service.replicas,
        max_batch=shape.batch,
        max_wait_s=config.batch_wait_ms / 1e3,
        max_queue=config.max_queue,
        observe=service.metrics.batches.observe,
    )
    service.metrics.serve(release.sha256)
    if service.state == "starting":
        service.state = "ready"
        counts = f"counts {release.classes[0]} to {release.classes[-1]}"
        if not are_counts(release.classes):
            counts = f"{len(release.classes):,} classes with names"
        say(
            f"ready on {url}: {counts}, checkpoint {release.sha256[:12]}, replicas "
            f"{shape.least}" + (f" to {shape.most}" if shape.most > shape.least else "")
        )
    heard = time.monotonic()
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        # Ray's controller may be starting again; it will answer at another look.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(LOST_S):
                service.replicas = await asyncio.to_thread(fleet.running)
            heard = time.monotonic()
        if time.monotonic() - heard > LOST_S:
            raise _RayLost(f"Ray has not answered for {LOST_S:g} s (were its processes killed?)")
        service.batcher.pump()
        if watch.changed():
            await _take_in(config, service, folder)


async def _take_in(config: ServeConfig, service: Service, folder: Path) -> None:
    try:
        release = await asyncio.to_thread(lambda: Check(config.checkpoint, folder).accept())
    except Exception as error:
        # Whatever is wrong with it, what was served is served on.
        service.metrics.releases.labels("refused").inc()
        say(f"new checkpoint refused: {error}")
        return
    service.release = release
    service.metrics.serve(release.sha256)
    service.metrics.releases.labels("taken").inc()
    say(f"new checkpoint {release.sha256[:12]} taken in")
