"""An S3 server that fails as the real one does: a proxy in front of a good one, for tests.

Of the answers to reading an object, some are 503 SlowDown, some stop in mid-body, some stall and
some are reset; which, a seed decides. Listings and writes now and then get a 503.
"""

from __future__ import annotations

import http.client
import http.server
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


@contextmanager
def faulty_proxy(
    endpoint: str,
    rates: dict[str, float],
    stall_s: float,
    refused: Mapping[str, tuple[int, str]] | None = None,
    *,
    read_only: bool = False,
) -> Iterator[tuple[str, Counter[str]]]:
    """The proxy's endpoint, and how often each fault was made so far.

    `rates` are probabilities of `slow-down`, `short`, `stall` and `reset`. Objects whose key holds
    a word of `refused` are not handed out: status and code of the answer. `read_only`
    denies all writes.
    """
    behind = urlsplit(endpoint)
    draw, lock, made = random.Random(0), threading.Lock(), Counter[str]()

    def fault(reads_object: bool) -> str | None:
        with lock:
            value = draw.random()
            for name, rate in rates.items():
                value -= rate
                if value < 0 and (reads_object or name == "slow-down"):
                    made[name] += 1
                    return name
        return None

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def relay(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            sent = self.rfile.read(length)
            reads_object = self.command == "GET" and "list-type" not in self.path
            for word, (status, code) in (refused or {}).items():
                if reads_object and word in self.path:
                    made[code] += 1
                    self.answer(status, {}, f"<Error><Code>{code}</Code></Error>".encode())
                    return
            if read_only and self.command == "PUT":
                self.answer(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
                return
            name = fault(reads_object)
            if name == "slow-down":
                self.answer(503, {}, SLOW_DOWN)
                return
            if name == "reset":
                self.reset()
                return
            upstream = http.client.HTTPConnection(behind.hostname or "", behind.port)
            upstream.request(self.command, self.path, sent, dict(self.headers))
            response = upstream.getresponse()
            body = response.read()
            headers = {k: v for k, v in response.getheaders() if k.lower() in KEPT}
            upstream.close()
            self.answer(response.status, headers, body, name)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = relay  # noqa: N815

        def answer(
            self, status: int, headers: dict[str, str], body: bytes, fault: str | None = None
        ) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if fault == "short":
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
                return
            if fault == "stall":
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                time.sleep(stall_s)
                self.reset()
                return
            if self.command != "HEAD":
                self.wfile.write(body)

        def reset(self) -> None:
            # Closing with lingering off sends RST instead of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except (OSError, ValueError):
                self.close_connection = True

        def finish(self) -> None:
            with suppress(OSError, ValueError):
                super().finish()

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 256
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", made
        server.shutdown()


KEPT = {"content-type", "etag", "last-modified", "x-amz-request-id", "content-range"}
