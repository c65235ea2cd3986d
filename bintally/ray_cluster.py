"""A Ray cluster: connecting to it, and running jobs on it."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from bintally.errors import UsageError, WorkError
from bintally.machine import socket_folder

__all__ = ["Job", "RayCluster", "connect", "first_line", "own_errors"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

HOME = Path(__file__).resolve().parent.parent
"""Where this project's packages lie."""


def connect(address: str, **options: Any) -> None:
    """Connects this process to the cluster; `UsageError` if there is none at `address`, `WorkError`
    if one of this machine alone (`local`), with `options` of `ray.init`, does not start."""
    if socket_folder() != tempfile.gettempdir():
        os.environ.setdefault("RAY_TMPDIR", socket_folder())
    if address == "local" and "ray" not in sys.modules:  # Later it would not be heard.
        # Ray listens on every interface, for whoever may run code in it. Its own way is a token
        # that all of a user's processes share, in a home that has to be there.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray

    nobody = f"--ray {address}: no Ray cluster answers there"
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        # Ray itself would try for minutes before it says that nobody is there.
        if port.isdigit():
            socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UsageError(f"{nobody}: {error}") from error
    try:
        # Its workers look for modules in the folder where this is called, before all others; the
        # user's may have packages that are called as ours.
        with contextlib.chdir(HOME):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # Ray raises a bare one where its processes do not start.
        reason = first_line(error)
        if address == "local":
            raise WorkError(f"Ray does not start on this machine: {reason}") from error
        # Ray does not say so, and sends a token of itself only where it has found the cluster.
        token = (
            "; one that wants a token is given it with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
            if port.isdigit() and "RAY_AUTH_MODE" not in os.environ
            else ""
        )
        raise UsageError(f"{nobody}: {reason}{token}") from error


@contextlib.contextmanager
def own_errors(lost: str) -> Iterator[None]:
    """Raises a task's own error where Ray has wrapped it, and `WorkError` where the task was lost;
    `lost` says what that was, and what to do."""
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        raise WorkError(f"the Ray cluster lost {lost}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error of Ray's says, without the traceback that follows."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


class Job(Protocol[T_co]):
    """Work that shares nothing with other work. Picklable."""

    def run(self) -> T_co:
        """Does the work."""


def _run(job: Job[T]) -> T:
    return job.run()


class RayCluster:
    """Runs jobs as Ray tasks. Lost nodes' jobs are run again on others.

    All nodes must have bintally installed, and reach the places by the same names: S3, or a file
    system that they share.
    """

    RETRIES = 20
    """How often a job is run again when its node or worker is lost."""
    AHEAD = 2
    """Jobs submitted for each core: enough to keep it busy, few enough to keep them small."""

    def __init__(self, address: str, gpus: float = 0) -> None:
        """Connects to the cluster; `UsageError` if there is none at `address`. A job takes a core,
        and `gpus`."""
        connect(address)
        import ray

        self._gpus = gpus
        self.workers = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def run(self, jobs: Iterable[Job[T]]) -> Iterator[T]:
        """The jobs' results, as they are done. A job's error is raised, and ends the others.

        Jobs are taken as they are needed, a few ahead.
        """
        import ray

        task = ray.remote(num_cpus=1, num_gpus=self._gpus, max_retries=self.RETRIES)(_run)
        waiting = iter(jobs)
        running = [task.remote(job) for job in islice(waiting, self.AHEAD * self.workers)]
        times = self.RETRIES + 1
        with own_errors(f"a job {times} times over (run the same command to continue)"):
            while running:
                done, running = ray.wait(running)
                yield from ray.get(done)
                running += [task.remote(job) for job in islice(waiting, len(done))]
