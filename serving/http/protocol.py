"""HTTP on a connection: uvicorn's protocol, less patient with senders who mean ill.

uvicorn waits for ever for a request's head and for its answer to be read, keeps as much of heads
and trailers as comes, refuses everybody once too many connections idle, and answers what is no HTTP
in plain text. A body's time and size are the application's to limit, for it reads the body.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum, auto
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bintally.machine import open_files_limit

__all__ = ["BACKLOG", "Connections", "GuardedProtocol", "most_connections"]

MOST_CONNECTIONS = 1000
OTHER_FILES = 100
"""Open files beside connections: of workers and checkpoints, and libraries' own."""
BACKLOG = 128
"""Connections that are accepted at a time."""
MAX_HEAD_BYTES = 16 * 1024
"""Of a request's head and trailers, and of what comes with a body and is none of it, such as the
sizes of its chunks: what is beyond may be as much as half of the body."""
HEADER_BYTES = 100
"""What a header counts for beside its text, for so much memory does it take."""
MAX_UNREAD_BYTES = 16 * 1024
"""Of answers that a client does not read. It has to, before it gets more."""
READ_BYTES = 32 * 1024
"""What is taken from a connection at a time."""
HEAD_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 20.0
"""For a client to read what it was sent."""
LINGER_S = 5.0
"""How long a request that was refused before its end may go on, for a sender who is cut off in the
middle may never see the answer; and how long a closed connection waits for its answer to be read.
"""


def most_connections() -> int:
    """`MOST_CONNECTIONS`, or as many as this process may have files open for."""
    return max(1, min(MOST_CONNECTIONS, open_files_limit() - BACKLOG - OTHER_FILES))


class Connections:
    """How many connections there may be, and which one gives way to another.

    Where there are too many, the one goes that has kept the server waiting for the longest time:
    for a request's beginning or its end, or to read its answer. An idle connection of a balancer
    is among them, but no request that is being answered.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._waiting: OrderedDict[GuardedProtocol, None] = OrderedDict()

    def wait(self, connection: GuardedProtocol) -> None:
        """From now on the server waits for this client."""
        self._waiting[connection] = None
        self._waiting.move_to_end(connection)

    def serve(self, connection: GuardedProtocol) -> None:
        """This client waits for the server, or is gone."""
        self._waiting.pop(connection, None)

    def give_way(self) -> bool:
        """Ends one connection, if there is one to be ended."""
        if not self._waiting:
            return False
        longest, _ = self._waiting.popitem(last=False)
        longest.give_way()
        return True


TOO_LARGE = f"the request's head or trailers have more than {MAX_HEAD_BYTES:,} bytes"


class Phase(Enum):
    """What a connection is doing."""

    IDLE = auto()
    """No request has begun."""
    HEAD = auto()
    BODY = auto()
    """The application reads it."""
    ANSWER = auto()
    """The request is whole."""
    UNREAD = auto()
    """More of an answer is there than the client reads."""
    REST = auto()
    """The request was answered before its end, which is read and forgotten."""
    CLOSING = auto()


class GuardedProtocol(HttpToolsProtocol):
    """A connection that never waits for its client without an end."""

    def __init__(self, *args: Any, others: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._others = others
        self._phase = Phase.IDLE
        self._reading = Phase.IDLE
        """How far the parser is: IDLE, HEAD or BODY."""
        self._head_bytes = 0
        self._framing_bytes = 0
        """What came since the last of a body, but for an allowance that the body earned."""
        self._deaf = False
        """What comes is not read any more: the connection ends with the answer under way."""
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=MAX_UNREAD_BYTES)
        # Of a thousand connections at once. asyncio's own choice is 256 KiB; uvloop has none.
        with contextlib.suppress(AttributeError):
            transport.max_size = READ_BYTES  # type: ignore[attr-defined]
        if len(self.connections) > self._others.most and not self._others.give_way():
            self._refuse(503, "too many connections; come again")
            return
        self._others.wait(self)
        self._set_deadline(HEAD_TIMEOUT_S, self._close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._others.serve(self)
        self._set_deadline(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._framing_bytes += len(data)
        super().data_received(data)
        self._follow()
        if self._framing_bytes > MAX_HEAD_BYTES and not self._deaf:
            if self._reading is Phase.BODY:
                self._refuse(400, "the request's body has more around its chunks than in them")
            else:
                self._refuse(431, TOO_LARGE)

    def on_message_begin(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # It may be sent again on another connection. No client of ours pipelines, and to keep
            # what is sent ahead would take memory.
            self._listen_no_more()
            raise ValueError("pipelined")
        super().on_message_begin()
        self._reading, self._head_bytes = Phase.HEAD, 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come here too.
        self._count(len(name) + len(value) + HEADER_BYTES)
        super().on_header(name, value)

    def _count(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, TOO_LARGE)
            raise ValueError(TOO_LARGE)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._reading, self._framing_bytes = Phase.BODY, 0

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._framing_bytes = max(0, self._framing_bytes - len(body) - len(body) // 2)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._reading, self._framing_bytes = Phase.IDLE, 0

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._follow()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._follow()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._follow()

    def _follow(self) -> None:
        """Takes note of what the connection is doing now, and for how long it may."""
        phase, before = self._current_phase(), self._phase
        if phase is before:
            return
        self._phase = phase
        match phase:
            case Phase.IDLE:
                self._set_deadline(self.timeout_keep_alive, self._close)
            case Phase.HEAD:
                self._set_deadline(HEAD_TIMEOUT_S, self._head_too_slow)
            case Phase.UNREAD:
                self._set_deadline(READ_TIMEOUT_S, self.transport.abort)
            case Phase.REST | Phase.CLOSING:
                self._set_deadline(LINGER_S, self.transport.abort)
            case Phase.BODY | Phase.ANSWER:
                self._set_deadline(None)
        if phase is Phase.ANSWER:
            self._others.serve(self)
        elif before in (Phase.IDLE, Phase.ANSWER):
            self._others.wait(self)

    def _current_phase(self) -> Phase:
        if self.transport.is_closing():
            return Phase.CLOSING
        if self.flow.write_paused:
            return Phase.UNREAD
        answered = self.cycle is None or self.cycle.response_complete
        if self._reading is Phase.BODY:
            return Phase.REST if answered else Phase.BODY
        return self._reading if answered else Phase.ANSWER

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def shutdown(self) -> None:
        """The server ends: so does the connection, once what has begun is answered."""
        if self._phase is Phase.HEAD:
            return
        if self.cycle is None or self.cycle.response_complete:
            self._close()
        else:
            self.cycle.keep_alive = False

    def give_way(self) -> None:
        """Ends the connection at once."""
        if self._phase in (Phase.HEAD, Phase.BODY):
            self._refuse(503, "too many connections; come again")
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        if not self._deaf:
            self._refuse(400, "not an HTTP request")

    def _unsupported_upgrade_warning(self) -> None:
        # The parser takes the request's body for another protocol's.
        self._refuse(400, "only HTTP/1.1 is spoken here; send the request without Upgrade")

    def _listen_no_more(self) -> None:
        self._deaf = True
        if self.cycle.response_complete:
            self._close()
        else:
            self.cycle.keep_alive = False

    def _head_too_slow(self) -> None:
        self._refuse(408, f"the request's head did not come within {HEAD_TIMEOUT_S:g} s")

    def _refuse(self, status: int, reason: str) -> None:
        """Answers without the application, and ends the connection."""
        if self.transport.is_closing():
            return
        body = json.dumps({"error": {"status": status, "reason": reason}}).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n"
            + ("retry-after: 1\r\n\r\n" if status == 503 else "\r\n")
        )
        # A request has one answer.
        if self.cycle is None or self.cycle.response_complete:
            answered = self._reading is Phase.BODY
        else:
            answered = self.cycle.response_started
        if not answered:
            self.transport.write(head.encode("ascii") + body)
        self._close()

    def _close(self) -> None:
        """Ends the connection when what was written is read, or has not been for long."""
        self.transport.close()
        self._follow()

    def _set_deadline(
        self, seconds: float | None, expired: Callable[[], None] = lambda: None
    ) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, expired)
