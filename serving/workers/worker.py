"""The process that counts: `python -m serving.workers.worker SOCKET`, which a server starts.

It ends when the server does, however that ends: its socket is closed then. What goes wrong in it,
but for a checkpoint that does not load, ends it: the server starts another, and a GPU in disorder
is mended by that.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from bintally.errors import UsageError
from bintally.terminal.command import prepare_process
from serving.answer import Counted
from serving.workers.wire import Load, Photos, Release, WorkerSettings, frame, read

if TYPE_CHECKING:
    import torch

    from bintally.counting.counter import Counter

__all__ = ["run_worker"]


class _Worker:
    """Counts batches, two at a time: one in the model while the next is decoded.

    A new checkpoint is loaded beside the old one, which counts until the new one is ready.
    """

    def __init__(self, connection: socket.socket, settings: WorkerSettings) -> None:
        import torch

        torch.set_num_threads(settings.threads)
        self._connection, self._settings = connection, settings
        self._sending = threading.Lock()
        self._loading, self._decoding, self._computing = (ThreadPoolExecutor(1) for _ in range(3))
        self._counter: Counter | None = None

    def take(self, number: int, question: Load | Photos) -> None:
        """Answers a question as soon as that may be."""
        if isinstance(question, Load):
            self._loading.submit(_or_end, self._load, number, question)
        else:
            self._decoding.submit(_or_end, self._decode, number, question)

    def _load(self, number: int, load: Load) -> None:
        try:
            counter = _load(load, self._settings)
        except UsageError as error:
            self._answer(number, UsageError(str(error).replace(load.file, load.name)))
            return
        self._counter = counter
        self._answer(number, Release(counter.sha256, counter.classes))

    def _decode(self, number: int, photos: Photos) -> None:
        # One of them for both halves, whatever is loaded in between.
        counter = self._counter
        assert counter is not None, "a checkpoint comes before photos"
        images, reasons = counter.decode(photos.jpegs)
        self._computing.submit(_or_end, self._predict, number, counter, images, reasons)

    def _predict(
        self,
        number: int,
        counter: Counter,
        images: torch.Tensor | None,
        reasons: list[str | None],
    ) -> None:
        rows = iter([] if images is None else counter.predict(images))
        scores = [next(rows) if reason is None else reason for reason in reasons]
        told = counter.sha256, counter.classes, counter.decision.rule
        self._answer(number, [Counted(*told, one) for one in scores])

    def _answer(self, number: int, answer: Any) -> None:
        message = frame((number, answer))
        with self._sending:
            self._connection.sendall(message)


def _or_end(work: Callable[..., None], *arguments: Any) -> None:
    try:
        work(*arguments)
    except BrokenPipeError:
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _load(load: Load, settings: WorkerSettings) -> Counter:
    """Raises `UsageError` for a checkpoint that does not count."""
    from bintally.counting.counter import Counter, plain_photo

    try:
        counter = Counter(
            load.file,
            device="cuda" if settings.gpu else "cpu",
            engine=settings.engine,
            precision=settings.precision,
            batch_size=settings.batch_size,
        )
        images, _ = counter.decode([plain_photo()])
        assert images is not None
        (row,) = counter.predict(images)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{load.file}: its model cannot be built: {reason}") from error
    if len(row) != len(counter.classes) or not all(map(math.isfinite, row)):
        raise UsageError(f"{load.file}: its model does not compute finite numbers")
    return counter


def run_worker() -> None:
    """Serves until the socket is closed."""
    # They are the server's, which tells its workers by their sockets.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    prepare_process()
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        stream = connection.makefile("rb")
        try:
            worker = _Worker(connection, read(stream))
            while True:
                worker.take(*read(stream))
        except (EOFError, OSError):
            # Nobody waits for what the threads are at.
            os._exit(0)


if __name__ == "__main__":
    run_worker()
