"""Why a request is not answered: a status, a reason for the sender, and when to come again."""

from __future__ import annotations

from typing import Any

__all__ = ["Refusal"]


class Refusal(Exception):
    """A request, or one photo of it, that is refused."""

    def __init__(
        self, status: int, reason: str, *, retry_after_s: int | None = None, close: bool = False
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.close = close
        """The connection cannot be used any further: its request was not read to its end."""

    def to_dict(self) -> dict[str, Any]:
        """As an answer holds it, under `error`."""
        return {"status": self.status, "reason": self.reason}
