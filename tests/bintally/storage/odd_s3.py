"""An S3 server of a few keys, read-only, that has the ways of other people's: for tests."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

__all__ = ["Answer", "OddS3", "error", "odd_s3"]

PAGE = 1000


@dataclass
class Answer:
    """What the server says."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class OddS3:
    """What it holds, how it differs from S3's own, and what it was asked."""

    objects: Mapping[str, bytes]
    bend: Callable[[Mapping[str, str], Mapping[str, str], Answer], Answer | None]
    """Of the headers and the query, and the good answer: another one, if there is to be one."""
    endpoint: str = ""
    connections: int = 0
    requests: int = 0


def error(status: int, code: str, **headers: str) -> Answer:
    """As S3 says that something is wrong."""
    body = f"<Error><Code>{code}</Code><Message>It is {code}.</Message></Error>"
    return Answer(status, body.encode(), {k.replace("_", "-"): v for k, v in headers.items()})


def e_tag(data: bytes) -> str:
    """As S3 has it, with its quotes."""
    return f'"{hashlib.md5(data).hexdigest()}"'


@contextmanager
def odd_s3(
    objects: Mapping[str, bytes],
    bend: Callable[[Mapping[str, str], Mapping[str, str], Answer], Answer | None],
) -> Iterator[OddS3]:
    """The server of a bucket of any name."""
    state = OddS3(objects, bend)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            state.connections += 1

        def do_GET(self) -> None:
            state.requests += 1
            url = urlsplit(self.path)
            query = {k: v[0] for k, v in parse_qs(url.query, keep_blank_values=True).items()}
            good = self.list(query) if "list-type" in query else self.read(unquote(url.path))
            answer = (
                state.bend({k.lower(): v for k, v in self.headers.items()}, query, good) or good
            )
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        do_HEAD = do_GET  # noqa: N815

        def read(self, path: str) -> Answer:
            _, _, key = path.removeprefix("/").partition("/")
            if not key:
                return Answer(200)
            if key not in state.objects:
                return error(404, "NoSuchKey")
            data = state.objects[key]
            modified = {"Last-Modified": "Wed, 01 Jan 2020 00:00:00 GMT"}
            return Answer(200, data, {"ETag": e_tag(data), **modified})

        def list(self, query: Mapping[str, str]) -> Answer:
            after = query.get("continuation-token", query.get("start-after", ""))
            prefix = query.get("prefix", "")
            keys = sorted(k for k in state.objects if k.startswith(prefix) and k > after)
            page, more = keys[:PAGE], len(keys) > PAGE
            as_url = query.get("encoding-type") == "url"
            name = quote if as_url else escape
            items = "".join(
                f"<Contents><Key>{name(key)}</Key><ETag>{e_tag(state.objects[key])}</ETag>"
                f"<LastModified>2020-01-01T00:00:00.000Z</LastModified>"
                f"<Size>{len(state.objects[key])}</Size></Contents>"
                for key in page
            )
            next_ = (
                f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
            )
            body = (
                f"<ListBucketResult>{'<EncodingType>url</EncodingType>' if as_url else ''}"
                f"<KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>{next_}{items}</ListBucketResult>"
            )
            return Answer(200, body.encode(), {"Content-Type": "application/xml"})

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 256
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        state.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        yield state
        server.shutdown()
