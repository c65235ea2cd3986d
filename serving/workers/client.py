"""A worker as its server sees it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from bintally.errors import WorkError
from serving.workers.wire import Load, Photos, WorkerSettings, frame, receive

__all__ = ["Worker", "WorkerLost"]


class WorkerLost(Exception):
    """The worker died, or did not answer."""


class Worker:
    """A process that counts, and the questions that it has not answered."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.batches = 0
        """That it has, or that are about to be sent to it."""
        self.alone = False
        """It is to be sent nothing else."""
        self.gone = False
        """It does not answer any more."""
        self._process, self._reader, self._writer = process, reader, writer
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._stuck = False
        self.end = asyncio.create_task(self._listen())
        """What it died of."""

    @classmethod
    async def start(cls, settings: WorkerSettings, gpus: Sequence[str]) -> Worker:
        """A process that has no checkpoint yet. Raises `WorkError` where there can be none."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-m", "serving.workers.worker", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=os.environ
                    | {
                        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
                        "OMP_NUM_THREADS": str(settings.threads),
                    },
                )
            except OSError as error:
                ours.close()
                raise WorkError(f"no worker could be started: {error}") from error
        reader, writer = await asyncio.open_connection(sock=ours)
        writer.write(frame(settings))
        return cls(process, reader, writer)

    async def ask(self, question: Load | Photos, timeout_s: float) -> Any:
        """The answer. Raises `WorkerLost`, and what the answer is, where that is an error."""
        if self.gone:
            raise WorkerLost
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(frame((number, question)))
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            self._stuck = True
            self.kill()
            raise WorkerLost from None
        finally:
            del self._asked[number]

    def kill(self) -> None:
        """Ends it at once."""
        self.gone = True
        self._process.kill()

    async def _listen(self) -> str:
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, answer = await receive(self._reader)
                asked = self._asked.get(number)
                if asked is None or asked.done():
                    continue
                if isinstance(answer, Exception):
                    asked.set_exception(answer)
                else:
                    asked.set_result(answer)
        self.kill()
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(WorkerLost())
        self._writer.close()
        code = await asyncio.to_thread(self._process.wait)
        if self._stuck:
            return "did not answer and was killed"
        return f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
