"""Answers in JSON; and why a request is not answered: a status, a reason for the sender, and when
to come again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

__all__ = ["Refusal", "answer_json"]


def answer_json(status: int, value: Any, headers: Mapping[str, str] | None = None) -> Response:
    """A response that no browser takes for anything else, and nobody keeps."""
    body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    every = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
    return Response(body, status, {**every, **(headers or {})}, "application/json")


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

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        """The answer to the request that is refused."""
        more = dict(headers or {})
        if self.retry_after_s is not None:
            more["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            more["WWW-Authenticate"] = "Bearer"
        if self.close:
            more["Connection"] = "close"
        return answer_json(self.status, {"error": self.to_dict()}, more)
