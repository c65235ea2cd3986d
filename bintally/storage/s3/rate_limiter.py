"""How many requests a server is asked at a time."""

from __future__ import annotations

import threading
import time
from types import TracebackType

__all__ = ["RateLimiter"]


class RateLimiter:
    """How many requests may be in flight: halved when the server pushes back, then slowly more.

    Additive increase and multiplicative decrease, as in TCP (Chiu and Jain 1989).
    """

    def __init__(self, limit: float = 1024.0) -> None:
        self.limit = limit
        self._most = limit
        self._in_flight = 0
        self._slowed_at = 0.0
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._in_flight < self.limit)
            self._in_flight += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            if error is None:
                self.limit = min(self._most, self.limit + 1 / self.limit)
            self._in_flight -= 1
            self._changed.notify()

    def slow_down(self) -> None:
        """The server has asked for less; of many such answers at once, one counts."""
        with self._changed:
            now = time.monotonic()
            if now - self._slowed_at > 1:
                self.limit = max(1.0, min(self.limit, self._in_flight) / 2)
                self._slowed_at = now
