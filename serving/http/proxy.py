"""What Ray Serve's proxies lack: our server's limits on connections, heads, bodies and time, and a
second try for what a lost replica had.

They read bodies of any size into memory and wait for slow ones for ever, unless every node's Ray is
started with `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serving.http.proxy:guard`. Limits are the
defaults of `bintally serve`, but for what BINTALLY_PROXY says there in JSON (`{"max_megabytes":
100}`); an application's narrower ones are its own to keep.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import uvicorn.config
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.config import Limits, ServeConfig
from serving.http.bodies import Bodies
from serving.http.protocol import Connections, GuardedProtocol, most_connections
from serving.http.refusal import Refusal

__all__ = ["GUARD", "GUARD_VARIABLE", "guard"]

GUARD_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
GUARD = "serving.http.proxy:guard"
"""What the variable is to say where a node's Ray is started."""
TRIES = 2
MOST_AT_ONCE = 200
"""Requests that Serve is at, which takes some 80 KiB for each; further ones wait here."""


def guard() -> list[Middleware]:
    """Called by a proxy before it listens: our protocol in the place of uvicorn's, and what goes
    around Serve's own application."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = "serving.http.proxy:ProxyProtocol"
    settings = json.loads(os.environ.get("BINTALLY_PROXY", "{}"))
    config = ServeConfig(checkpoint=Path(), **settings)
    config.check()
    return [Middleware(_Guarded, limits=config.limits)]


class ProxyProtocol(GuardedProtocol):
    """A connection to a proxy, of which a process has one."""

    _all = Connections(most_connections())

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, others=self._all, **kwargs)
        self.ws_protocol_class = None


class _Guarded:
    """Reads a request's body before Serve sees it."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._bodies = app, Bodies(limits)
        self._places = asyncio.Semaphore(MOST_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            if not scope["path"].startswith("/"):  # Serve would not answer at all.
                raise Refusal(404, "a path begins with /", close=True)
            request = Request(scope, receive)
            announced = request.headers.get("content-length")
            async with self._bodies.receive(request.stream(), announced) as body, self._places:
                await self._pass_on(scope, body, receive, send)
        except ClientDisconnect:
            return
        except Refusal as refusal:
            await refusal.response()(scope, receive, send)

    async def _pass_on(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        for _ in range(TRIES):
            passing = _Passing(scope["path"] == "/invocations", body, receive, send)
            await self._app(dict(scope), passing.receive, passing.send)
            if not passing.lost:
                return
        raise Refusal(503, "the replica that counted it was lost; send it again", retry_after_s=1)


class _Passing:
    """A request on its way to a replica, and the answer on its way back."""

    def __init__(self, counting: bool, body: bytes, receive: Receive, send: Send) -> None:
        self.lost = False
        """The answer is Serve's and not a replica's. Counting changes nothing: it may be tried
        again."""
        self._counting, self._body = counting, [body]
        self._receive, self._send = receive, send

    async def receive(self) -> MutableMapping[str, Any]:
        """The whole body, and then what comes after it."""
        if self._body:
            return {"type": "http.request", "body": self._body.pop(), "more_body": False}
        return await self._receive()

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Sends what is a replica's."""
        if message["type"] == "http.response.start" and self._counting:
            kind = dict(message["headers"]).get(b"content-type")
            self.lost = message["status"] >= 500 and kind != b"application/json"
        if not self.lost:
            await self._send(message)
