"""The local S3 servers that shards are built from: one that is fast, one that is far away.

Nginx hands out the files of a folder, `/bucket/key`, and costs little beside the clients; listings,
a handful of requests, are answered by Python. Far away is an asyncio server, which answers every
request after a fixed time, from memory.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

from bintally.errors import UsageError, WorkError

__all__ = ["DistantServer", "Listing", "Nginx", "find_nginx"]

PAGE = 1000
"""Keys in an answer to a listing: S3's most."""
START_TIMEOUT_S = 10.0
QUOTES = {'"': "&quot;"}
LAST = chr(0x10FFFF)
"""Above every character of a key."""
MODIFIED = "Mon, 23 Nov 2026 00:00:00 GMT"
MODIFIED_ISO = "2026-11-23T00:00:00.000Z"

CONFIGURATION = """\
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  etag on;
  keepalive_requests 1000000;
  open_file_cache off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    root {root};
    location / {{ }}
    location ~ ^/[^/]+/?$ {{ proxy_pass http://127.0.0.1:{listing_port}; }}
  }}
}}
"""


class Listing:
    """The files of a folder as a bucket's objects, and the answers to ListObjectsV2 of them.

    Fast, for the makers share the cores with it: what an answer says of an object is made once.
    """

    def __init__(self, folder: Path) -> None:
        self.bucket = folder.name
        self.etags: dict[str, str] = {}
        """By key, quotation marks included; as nginx makes them, for a client compares."""
        contents = {}
        for path in folder.rglob("*"):
            if path.is_file():
                stat = path.stat()
                key = path.relative_to(folder).as_posix()
                etag = f'"{int(stat.st_mtime):x}-{stat.st_size:x}"'
                self.etags[key] = etag
                contents[key] = (
                    f"<Contents><Key>{escape(key)}</Key><LastModified>{MODIFIED_ISO}</LastModified>"
                    f"<ETag>{escape(etag, QUOTES)}</ETag><Size>{stat.st_size}</Size>"
                    "<StorageClass>STANDARD</StorageClass></Contents>"
                )
        self._keys = sorted(contents)
        self._contents = [contents[key] for key in self._keys]

    def answer(self, query: Mapping[str, Sequence[str]]) -> bytes:
        """The answer to a query."""
        prefix = query.get("prefix", [""])[0]
        # A token is the last key that was given, so both say where to go on.
        after = max(query.get("start-after", [""])[0], query.get("continuation-token", [""])[0])
        most = min(PAGE, int(query.get("max-keys", [str(PAGE)])[0]))
        first = max(bisect_left(self._keys, prefix), bisect_right(self._keys, after))
        end = bisect_left(self._keys, prefix + LAST)
        last = max(first, min(end, first + most))
        truncated = last < end
        token = ""
        if truncated and last > first:
            name = escape(self._keys[last - 1])
            token = f"<NextContinuationToken>{name}</NextContinuationToken>"
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{escape(self.bucket)}</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<KeyCount>{last - first}</KeyCount><MaxKeys>{most}</MaxKeys>"
            f"<IsTruncated>{str(truncated).lower()}</IsTruncated>{token}"
            f"{''.join(self._contents[first:last])}</ListBucketResult>"
        ).encode()


def find_nginx() -> str:
    """Nginx's path; `UsageError` where it is not installed."""
    # /usr/sbin is not in every user's PATH.
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise UsageError(
            "nginx is needed to serve the photos (a test server such as moto would be slower than "
            "what is measured); install it: apt-get install nginx-light"
        )
    return found


class Nginx:
    """Serves the folders below `root` as buckets while the context lasts."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self._program = find_nginx()
        self._root, self._scratch = root.resolve(), scratch.resolve()
        self._listings = _ListingServer(self._root)
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint = ""
        self.cpu_s = 0.0
        """Its CPU time, known at the end."""

    @property
    def version(self) -> str:
        """`nginx 1.22.1`."""
        answer = subprocess.run([self._program, "-v"], capture_output=True, text=True)
        return answer.stderr.strip().rpartition("nginx version: ")[2].replace("/", " ")

    def __enter__(self) -> Nginx:
        self._scratch.mkdir()
        port = _free_port()
        configuration = CONFIGURATION.format(
            # Root's worker would be another user, who may not read a temporary folder.
            user="user root;" if os.geteuid() == 0 else "",
            folder=self._scratch,
            root=self._root,
            port=port,
            listing_port=self._listings.server_address[1],
        )
        file = self._scratch / "nginx.conf"
        file.write_text(configuration)
        threading.Thread(target=self._listings.serve_forever, daemon=True).start()
        errors = self._scratch / "error.log"
        command = [self._program, "-p", str(self._scratch), "-e", str(errors), "-c", str(file)]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self.endpoint = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return self
            except ConnectionRefusedError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__(None, None, None)
                    reason = errors.read_text() if errors.exists() else ""
                    raise WorkError(f"nginx does not start: {reason.strip()}") from None
                time.sleep(0.05)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            # wait4 tells the CPU time, that of the worker included, for which the master waits.
            _, status, usage = os.wait4(self._process.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
            self.cpu_s = usage.ru_utime + usage.ru_stime
        self._listings.shutdown()
        self._listings.server_close()


class _ListingServer(ThreadingHTTPServer):
    """Answers what is asked of a bucket itself."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _ListingHandler)
        self.buckets = {
            folder.name: Listing(folder) for folder in root.iterdir() if folder.is_dir()
        }


class _ListingHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, _ListingServer)
        url = urlsplit(self.path)
        bucket = url.path.strip("/")
        listing = self.server.buckets.get(bucket)
        if listing is None:
            status, body = 404, b"<Error><Code>NoSuchBucket</Code></Error>"
        else:
            status, body = 200, listing.answer(parse_qs(url.query))
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nobody reads a log of it."""


class DistantServer:
    """A bucket whose every answer takes `latency_s`; a context manager, in a thread of its own."""

    def __init__(self, folder: Path, latency_s: float) -> None:
        self.latency_s = latency_s
        self.bucket = folder.name
        self.listing = Listing(folder)
        self.data = {key: (folder / key).read_bytes() for key in self.listing.etags}
        self.endpoint = ""
        self.photos: list[tuple[float, float]] = []
        """When each photo was asked for and answered."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> DistantServer:
        async def start() -> int:
            server = await self._loop.create_server(
                lambda: _Distant(self), "127.0.0.1", 0, backlog=1024
            )
            port: int = server.sockets[0].getsockname()[1]
            return port

        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(start(), self._loop).result()
        self.endpoint = f"http://127.0.0.1:{port}"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def answer(self, target: str) -> bytes:
        """The whole answer to a GET."""
        url = urlsplit(target)
        bucket, _, key = url.path.strip("/").partition("/")
        etag = ""
        if bucket == self.bucket and not key:
            status, body = "200 OK", self.listing.answer(parse_qs(url.query))
        elif bucket == self.bucket and key in self.data:
            status, body, etag = "200 OK", self.data[key], f"ETag: {self.listing.etags[key]}\r\n"
        else:
            status, body = "404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>"
        head = (
            f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{etag}"
            f"Last-Modified: {MODIFIED}\r\n\r\n"
        )
        return head.encode() + body


class _Distant(asyncio.Protocol):
    """A connection; its requests have no body, and the next comes after the last one's answer."""

    def __init__(self, server: DistantServer) -> None:
        self._server = server
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if b"\r\n\r\n" in self._received:
            target = self._received.split(b" ", 2)[1].decode()
            self._received = b""
            loop = asyncio.get_running_loop()
            loop.call_later(self._server.latency_s, self._answer, target, time.monotonic())

    def _answer(self, target: str, asked: float) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._server.answer(target))
        if urlsplit(target).path.endswith(".jpg"):  # Not a listing that starts after one.
            self._server.photos.append((asked, time.monotonic()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
