"""Where jobs run: in processes of this machine, or on a Ray cluster. The job is the same.

A job shares nothing and writes whole files only, so one that is lost is simply run again.
"""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import multiprocessing.util
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Protocol, TypeVar

from bintally.errors import WorkError
from bintally.machine import socket_folder
from bintally.ray_cluster import connect

__all__ = ["Distributor", "Job", "Processes", "RayCluster"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Job(Protocol[T_co]):
    """Work that shares nothing with other work. Picklable."""

    def run(self) -> T_co:
        """Does the work."""


class Distributor(Protocol):
    """Runs jobs, several at a time."""

    workers: int
    """How many at a time."""

    def run(self, jobs: Sequence[Job[T]]) -> Iterator[T]:
        """The jobs' results, as they are done. A job's error is raised, and ends the others."""


PRELOADED = [
    "sharding.shard",
    "sharding.source.metadata_job",
    "simplejpeg",
    "bintally.storage.s3.prefix",
    "boto3",
    "obstore.auth.boto3",
]


class Processes:
    """Runs jobs in processes of this machine; a single worker is this process itself."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, jobs: Sequence[Job[T]]) -> Iterator[T]:
        """See `Distributor.run`."""
        workers = min(self.workers, len(jobs))
        if workers <= 1:
            for job in jobs:
                yield job.run()
            return
        # Not a fork of this process: the S3 client's threads would not survive it. A server that
        # has imported what a job needs, and nothing else, is forked in no time.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        # multiprocessing makes its folder for sockets once, in the one for temporary files.
        usual, tempfile.tempdir = tempfile.gettempdir(), socket_folder()
        multiprocessing.util.get_temp_dir()
        tempfile.tempdir = usual
        with ProcessPoolExecutor(workers, context, initializer=_begin) as pool:
            try:
                for future in as_completed({pool.submit(job.run) for job in jobs}):
                    yield future.result()
            except BrokenProcessPool as error:
                raise WorkError(
                    "a worker process died (out of memory?); run the same command to continue, "
                    "with fewer --workers if it happens again"
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    """Readies a worker process, which is to end when its parent ends, however that ends."""
    # The parent reports an interruption; a traceback from every worker would only bury it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # A job makes no cycles; looking for them took a twentieth of its time.
    gc.disable()
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker process"

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _run(job: Job[T]) -> T:
    return job.run()


class RayCluster:
    """Runs jobs as Ray tasks of a core each. Lost nodes' jobs are run again on others.

    All nodes must have bintally installed, and reach the places by the same names: S3, or a file
    system that they share.
    """

    RETRIES = 20
    """How often a job is run again when its node or worker is lost."""
    AHEAD = 2
    """Jobs submitted for each core: enough to keep it busy, few enough to keep them small."""

    def __init__(self, address: str) -> None:
        """Connects to the cluster; `UsageError` if there is none at `address`."""
        import ray

        connect(address)
        self.workers = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def run(self, jobs: Sequence[Job[T]]) -> Iterator[T]:
        """See `Distributor.run`."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        task = ray.remote(num_cpus=1, max_retries=self.RETRIES)(_run)
        waiting = iter(jobs)
        running = [task.remote(job) for job in islice(waiting, self.AHEAD * self.workers)]
        try:
            while running:
                done, running = ray.wait(running)
                yield from ray.get(done)
                running += [task.remote(job) for job in islice(waiting, len(done))]
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            raise WorkError(
                f"the Ray cluster lost a job {self.RETRIES + 1} times over: "
                f"{str(error).splitlines()[0]}; run the same command to continue"
            ) from error
