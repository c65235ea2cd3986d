"""What a server does between a request and its answer, and what it knows of itself.

The same on one machine, where `server.py` listens for it, and in a replica of a Ray cluster.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from bintally.terminal.progress import say
from serving.answer import Counted, make_answer
from serving.batcher import Batcher, QueueFull
from serving.config import ServeConfig
from serving.http.bodies import Bodies
from serving.http.refusal import Refusal
from serving.http.request import Asked, Item
from serving.metrics import Metrics
from serving.workers.client import WorkerLost
from serving.workers.pool import Shape, Workers
from serving.workers.releases import ReleaseWatcher
from serving.workers.wire import Release

__all__ = ["Service"]

State = Literal["starting", "ready", "draining"]

logger = logging.getLogger("serving")

LOOK_EVERY_S = 1.0
"""At the checkpoint's file."""


class Service:
    """Counts what is asked for, within limits. Belongs to one event loop."""

    def __init__(self, config: ServeConfig, shape: Shape, token: str | None) -> None:
        self.limits = config.limits
        self._token = token
        self.state: State = "starting"
        self.release: Release | None = None
        self.bodies = Bodies(self.limits)
        self._recent_s_per_photo = 0.02
        self._watcher = ReleaseWatcher(config.checkpoint)
        self._folder = tempfile.TemporaryDirectory(prefix="bintally-serving-")
        self._workers = Workers(config, shape, Path(self._folder.name), lambda: self.batcher.pump())
        self.batcher = Batcher(
            self._workers,
            max_batch=shape.batch,
            max_wait_s=config.batch_wait_ms / 1e3,
            max_queue=config.max_queue,
            observe=lambda size: self.metrics.batches.observe(size),
        )
        self.metrics = Metrics(
            {
                "bintally_queue_photos": ("Photos waiting.", lambda: self.batcher.queued),
                "bintally_batches_in_flight": (
                    "Batches with workers.",
                    lambda: self.batcher.in_flight,
                ),
                "bintally_replicas": ("Workers that can count.", lambda: self._workers.running),
                "bintally_held_bytes": (
                    "Of requests being served.",
                    lambda: self.bodies.held_bytes,
                ),
            }
        )

    async def start(self) -> Release:
        """Starts the workers; returns when all of them can count.

        Raises `UsageError` for a checkpoint that does not count, `WorkError` where a worker dies.
        """
        self.release = await self._workers.start()
        self.metrics.serve(self.release.sha256)
        if self.state == "starting":
            self.state = "ready"
        return self.release

    async def watch(self) -> None:
        """Takes in checkpoints that are put in the place of the one served, until it is
        cancelled. Whatever is wrong with one, what was served is served on."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if not self._watcher.changed():
                continue
            try:
                self.release = await self._workers.take_in()
            except Exception as error:
                self.metrics.releases.labels("refused").inc()
                say(f"new checkpoint refused: {error}")
                continue
            self.metrics.serve(self.release.sha256)
            self.metrics.releases.labels("taken").inc()
            say(f"new checkpoint {self.release.sha256[:12]} taken in")

    async def stop(self) -> None:
        """Ends the workers."""
        await self._workers.stop()
        self._folder.cleanup()

    @property
    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether requests should come here, and what `/ping` says. That it answers at all tells
        that it is alive."""
        running = self._workers.running
        ready = self.state == "ready" and running > 0
        status = self.state if ready or self.state != "ready" else "no replica"
        model = self.release.sha256 if self.release is not None else None
        return ready, {"status": status, "replicas": running, "model": model}

    def authorise(self, authorization: str) -> None:
        """Raises `Refusal` (401) unless a request carries the token, where one is asked for."""
        if self._token is None:
            return
        scheme, _, token = authorization.partition(" ")
        # Compared in constant time, lest the time tell how much of it is right.
        right = hmac.compare_digest(token.strip().encode("utf-8", "replace"), self._token.encode())
        if scheme.lower() != "bearer" or not right:
            raise Refusal(401, "send the header Authorization: Bearer <token>", close=True)

    def admit(self) -> None:
        """Raises `Refusal` for a request that is refused by its head."""
        if self.release is None:
            raise Refusal(503, "not ready yet: the model is being loaded", retry_after_s=2)
        if self.batcher.queued >= self.limits.queue:
            raise self._busy()

    def _busy(self) -> Refusal:
        seconds = max(1, min(30, math.ceil(self.batcher.queued * self._recent_s_per_photo)))
        return Refusal(429, "too many photos are waiting; come again", retry_after_s=seconds)

    async def answer(self, asked: Asked, began: float) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer; `began` is when the request was there (perf_counter).

        Raises `Refusal` where nothing of it is answered.
        """
        results = await self._count([item for item in asked.items if item.refusal is None])
        remaining = iter(results)
        answers: list[dict[str, Any] | Refusal] = [
            item.refusal or _describe(item, next(remaining)) for item in asked.items
        ]
        self._note(answers)
        took = {"milliseconds": round((time.perf_counter() - began) * 1e3, 3)}
        if asked.single:
            (only,) = answers
            if isinstance(only, Refusal):
                raise only
            return 200, only | took
        refusals = [answer for answer in answers if isinstance(answer, Refusal)]
        predictions = [
            ({"id": item.id} if item.id is not None else {})
            | ({"error": answer.to_dict()} if isinstance(answer, Refusal) else answer)
            for item, answer in zip(asked.items, answers, strict=True)
        ]
        if len(refusals) < len(answers):
            return 200, {"predictions": predictions} | took
        first = {"status": refusals[0].status, "reason": f"no photo counted: {refusals[0].reason}"}
        return refusals[0].status, {"error": first, "predictions": predictions} | took

    async def _count(self, items: Sequence[Item]) -> list[Counted | BaseException]:
        if not items:
            return []
        began = time.perf_counter()
        try:
            futures = self.batcher.submit([item.photo for item in items])
        except QueueFull:
            raise self._busy() from None
        try:
            async with asyncio.timeout(self.limits.answer_s):
                results = await asyncio.gather(*futures, return_exceptions=True)
        except TimeoutError:
            raise Refusal(
                503, f"not counted within {self.limits.answer_s:g} s", retry_after_s=5
            ) from None
        per_photo = (time.perf_counter() - began) / (len(items) + self.batcher.queued)
        self._recent_s_per_photo += 0.05 * (per_photo - self._recent_s_per_photo)
        return results

    def _note(self, answers: Sequence[dict[str, Any] | Refusal]) -> None:
        for answer in answers:
            if isinstance(answer, Refusal):
                self.metrics.photos.labels("failed" if answer.status >= 500 else "refused").inc()
                continue
            self.metrics.photos.labels("counted").inc()
            self.metrics.counts.labels(str(answer.get("count", answer.get("label")))).inc()
            self.metrics.confidence.observe(answer["confidence"])
            if "verdict" in answer:
                self.metrics.verdicts.labels(answer["verdict"]).inc()


def _describe(item: Item, result: Counted | BaseException) -> dict[str, Any] | Refusal:
    if isinstance(result, WorkerLost):
        return Refusal(500, "two workers died of counting it; it is not tried again")
    if isinstance(result, BaseException):
        logger.error("counting failed: %s", result, exc_info=result)
        return Refusal(500, "counting failed; the server's log says why")
    if isinstance(result.scores, str):
        return Refusal(400, result.scores)
    answer = make_answer(result.scores, result.classes, result.rule, item.expected_quantity)
    return {**answer, "model": result.model}
