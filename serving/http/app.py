"""The routes: SageMaker's `/ping` and `/invocations`, `/metrics`, the page and its description."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import cache
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from serving.http.openapi import describe_api
from serving.http.refusal import Refusal, answer_json
from serving.http.request import parse
from serving.metrics import CONTENT_TYPE
from serving.service import Service

__all__ = ["make_app"]

CUSTOM_ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"

logger = logging.getLogger("serving")

Handler = Callable[[Request], Awaitable[Response]]


def make_app(service: Service) -> Starlette:
    """The ASGI application of a service."""
    described = describe_api(service.limits)

    async def ping(request: Request) -> Response:
        ready, state = service.readiness
        return answer_json(200 if ready else 503, state)

    async def invocations(request: Request) -> Response:
        service.authorise(request.headers.get("authorization", ""))
        service.admit()
        announced = request.headers.get("content-length")
        try:
            async with service.bodies.receive(request.stream(), announced) as body:
                began = time.perf_counter()
                asked = parse(
                    request.headers.get("content-type", ""),
                    body,
                    # Not request.url, which reads the sender's Host for it.
                    request.scope["query_string"].decode("latin-1"),
                    request.headers.get(CUSTOM_ATTRIBUTES, ""),
                    service.limits,
                )
                del body
                status, answer = await _unless_gone(request, service.answer(asked, began))
        except ClientDisconnect:
            raise Refusal(400, "the client left before its answer", close=True) from None
        service.metrics.seconds.observe(time.perf_counter() - began)
        return answer_json(status, answer)

    async def metrics(request: Request) -> Response:
        service.authorise(request.headers.get("authorization", ""))
        return Response(service.metrics.render(), media_type=CONTENT_TYPE)

    async def page(request: Request) -> Response:
        html, policy = _page()
        return Response(html, media_type="text/html", headers={"Content-Security-Policy": policy})

    async def openapi(request: Request) -> Response:
        return answer_json(200, described)

    def route(path: str, handler: Handler, method: str) -> Route:
        return Route(path, _guarded(service, path, handler), methods=[method])

    async def elsewhere(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        service.metrics.requests.labels("other", str(error.status_code)).inc()
        refusal = Refusal(error.status_code, f"{request.method} of this path: {error.detail}")
        return refusal.response(error.headers)

    app = Starlette(
        routes=[
            route("/ping", ping, "GET"),
            route("/invocations", invocations, "POST"),
            route("/metrics", metrics, "GET"),
            route("/openapi.json", openapi, "GET"),
            route("/", page, "GET"),
        ],
        exception_handlers={HTTPException: elsewhere},
    )
    # It would redirect to a host of the sender's choice.
    app.router.redirect_slashes = False
    return app


def _guarded(service: Service, path: str, handler: Handler) -> Handler:
    """Every end of a handler is an answer in JSON, and is counted."""

    async def guarded(request: Request) -> Response:
        try:
            response = await handler(request)
        except Refusal as refusal:
            response = refusal.response()
        except asyncio.CancelledError:
            # By uvicorn, in the end.
            response = Refusal(503, "the server is stopping", retry_after_s=1).response()
        except Exception:
            logger.exception("%s failed", path)
            response = Refusal(500, "our own fault; the server's log says more").response()
        if service.state == "draining":
            # For the client to be elsewhere by the time that the listener closes.
            response.headers["Connection"] = "close"
        service.metrics.requests.labels(path, str(response.status_code)).inc()
        return response

    return guarded


async def _unless_gone(
    request: Request, answering: Coroutine[Any, Any, tuple[int, dict[str, Any]]]
) -> tuple[int, dict[str, Any]]:
    """An answer, unless the client leaves before: then what it asked for is given up.

    Raises `ClientDisconnect`.
    """
    answer = asyncio.create_task(answering)
    # After a request's end nothing else can come.
    left = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((answer, left), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        answer.cancel()
        left.cancel()


@cache
def _page() -> tuple[bytes, str]:
    """The page, and a policy under which a browser runs nothing but what is in it."""
    html = Path(__file__).with_name("page.html").read_bytes()
    sources = {}
    for element in (b"script", b"style"):
        found = re.search(b"<%b>(.*?)</%b>" % (element, element), html, re.DOTALL)
        assert found is not None, f"the page has a {element.decode()}"
        digest = base64.b64encode(hashlib.sha256(found[1]).digest()).decode()
        sources[element] = f"'sha256-{digest}'"
    policy = (
        f"default-src 'none'; script-src {sources[b'script']}; style-src {sources[b'style']}; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return html, policy
