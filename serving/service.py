"""What the server does between a request and its answer, and what it knows of itself."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import Sequence
from typing import Any, Literal

from bintally.counting.decision import Scores
from serving.answer import Counted, make_answer
from serving.batcher import Batcher, QueueFull
from serving.config import Limits
from serving.fleet import ReplicaLost
from serving.http.bodies import Bodies
from serving.http.refusal import Refusal
from serving.http.request import Asked, Item
from serving.metrics import Metrics
from serving.releases import Release

__all__ = ["Service"]

State = Literal["starting", "ready", "draining"]

logger = logging.getLogger("serving")


class Service:
    """Counts what is asked for, within limits. Belongs to one event loop."""

    def __init__(self, limits: Limits, token: str | None) -> None:
        self.limits = limits
        self._token = token
        self.state: State = "starting"
        self.replicas = 0
        self.batcher: Batcher | None = None
        self.release: Release | None = None
        self.bodies = Bodies(limits)
        self._recent_s_per_photo = 0.02
        self.metrics = Metrics(
            {
                "bintally_queue_photos": ("Photos waiting.", lambda: self._of_batcher("queued")),
                "bintally_batches_in_flight": (
                    "Batches with replicas.",
                    lambda: self._of_batcher("in_flight"),
                ),
                "bintally_replicas": ("Replicas that can count.", lambda: self.replicas),
                "bintally_held_bytes": (
                    "Of requests being served.",
                    lambda: self.bodies.held_bytes,
                ),
            }
        )

    def _of_batcher(self, name: str) -> float:
        return float(getattr(self.batcher, name)) if self.batcher is not None else 0.0

    @property
    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether requests should come here, and what `/ping` says. That it answers at all tells
        that it is alive."""
        ready = self.state == "ready" and self.replicas > 0
        status = self.state if ready or self.state != "ready" else "no replica"
        model = self.release.sha256 if self.release is not None else None
        return ready, {"status": status, "replicas": self.replicas, "model": model}

    def authorise(self, authorization: str) -> None:
        """Raises `Refusal` (401) unless a request carries the token, where one is asked for."""
        if self._token is None:
            return
        scheme, _, token = authorization.partition(" ")
        # Compared in constant time, lest the time tell how much of it is right.
        right = hmac.compare_digest(token.strip().encode("utf-8", "replace"), self._token.encode())
        if scheme.lower() != "bearer" or not right:
            raise Refusal(401, "send the header Authorization: Bearer <token>", close=True)

    def admit(self, content_length: str | None) -> None:
        """Raises `Refusal` for a request that is refused by its head."""
        if self.batcher is None:
            raise Refusal(503, "not ready yet: the model is being loaded", retry_after_s=2)
        if content_length is not None and int(content_length) > self.limits.body_bytes:
            raise Refusal(413, f"the request has more than {self.limits.body_bytes:,} bytes")
        if self.batcher.queued >= self.limits.queue:
            raise self._busy()

    def _busy(self) -> Refusal:
        waiting = self.batcher.queued if self.batcher is not None else 0
        seconds = max(1, min(30, math.ceil(waiting * self._recent_s_per_photo)))
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

    async def _count(self, items: Sequence[Item]) -> list[tuple[Counted, Scores] | BaseException]:
        if not items:
            return []
        assert self.batcher is not None, "admitted before"
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


def _describe(
    item: Item, result: tuple[Counted, Scores] | BaseException
) -> dict[str, Any] | Refusal:
    if isinstance(result, ReplicaLost):
        return Refusal(503, "the replica that counted it died; send it again", retry_after_s=1)
    if isinstance(result, BaseException):
        logger.error("counting failed: %s", result, exc_info=result)
        return Refusal(500, "counting failed; the server's log says why")
    counted, row = result
    if isinstance(row, str):
        return Refusal(400, row)
    answer = make_answer(row, counted.classes, counted.rule, item.expected_quantity)
    return {**answer, "model": counted.model}
