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
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Protocol, TypeVar

from bintally.errors import WorkError
from bintally.machine import socket_folder
from bintally.ray_cluster import Job
from sharding.columns import prepare_arrow

__all__ = ["Distributor", "Processes"]

T = TypeVar("T")


class Distributor(Protocol):
    """Runs jobs, several at a time."""

    workers: int
    """How many at a time."""

    def run(self, jobs: Iterable[Job[T]]) -> Iterator[T]:
        """The jobs' results, as they are done. A job's error is raised, and ends the others.

        Jobs are taken as they are needed, a few ahead.
        """


PRELOADED = [
    "sharding.shard",
    "sharding.source.abid.metadata_job",
    "sharding.verify_job",
    "simplejpeg",
    "bintally.storage.s3.prefix",
    "boto3",
    "obstore.auth.boto3",
]


class Processes:
    """Runs jobs in processes of this machine; a single worker is this process itself."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    AHEAD = 2
    """Jobs submitted for each worker."""

    def run(self, jobs: Iterable[Job[T]]) -> Iterator[T]:
        waiting = iter(jobs)
        first = [*islice(waiting, min(2, self.workers))]
        if len(first) < 2:
            for job in chain(first, waiting):
                yield job.run()
            return
        waiting = chain(first, waiting)
        # Not a fork of this process: the S3 client's threads would not survive it. A server that
        # has imported what a job needs, and nothing else, is forked in no time.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        # multiprocessing makes its folder for sockets once, in the one for temporary files.
        usual, tempfile.tempdir = tempfile.gettempdir(), socket_folder()
        multiprocessing.util.get_temp_dir()
        tempfile.tempdir = usual
        with ProcessPoolExecutor(self.workers, context, initializer=_begin) as pool:
            try:
                ahead = islice(waiting, self.AHEAD * self.workers)
                running = {pool.submit(job.run) for job in ahead}
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        running |= {pool.submit(job.run) for job in islice(waiting, 1)}
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
    prepare_arrow()
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker process"

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
