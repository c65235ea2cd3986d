"""Requests that mean ill, and what the server must make of each: a 4xx, and go on."""

from __future__ import annotations

import base64
import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["attacks", "request", "send_raw"]

Attack = tuple[str, Callable[[int], bytes]]
"""Its name, and what sends it to a port and returns all that comes back."""


def send_raw(port: int, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """Sends pieces on a connection of its own; what comes back until the server or the answer
    ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                if pause_s:
                    time.sleep(pause_s)
        except OSError:
            pass  # It has refused the rest; its answer is still to be read.
        received = b""
        try:
            while not _whole(received):
                data = connection.recv(65536)
                if not data:
                    break
                received += data
        except ConnectionResetError:
            pass
        return received


def _whole(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(found) and bool(lengths) and len(body) >= int(lengths[0].partition(b":")[2])


def request(
    body: bytes, kind: str = "image/jpeg", path: str = "/invocations", more: str = ""
) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n{more}"
    return head.encode("latin-1") + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def attacks(number: int, photos: list[bytes], limit_bytes: int, seed: int) -> Iterator[Attack]:
    """`number` attacks of every kind in turn, the same ones for the same seed."""
    random_ = random.Random(seed)
    kinds = [
        _truncated, _garbled, _bomb, _scans, _other_types, _no_photo, _json, _deep, _wide, _base64,
        _form, _huge, _huge_chunked, _paths, _methods, _no_http, _giant_head, _lengths, _quantity,
        _many_headers, _trailers, _chunk_extensions, _tiny_chunks, _endless_chunk_size, _expecting,
        _host, _blank_lines,
    ]  # fmt: skip
    for turn in range(number):
        kind = kinds[turn % len(kinds)]
        pieces = kind(random_, random_.choice(photos), limit_bytes)
        yield kind.__name__, lambda port, pieces=pieces: send_raw(port, *pieces)  # type: ignore[misc]


Random = random.Random


def _truncated(r: Random, photo: bytes, limit: int) -> list[bytes]:
    return [request(photo[: r.randrange(2, len(photo) - 200)])]


def _garbled(r: Random, photo: bytes, limit: int) -> list[bytes]:
    # A damaged header, or bytes of zero where pixels were.
    at = r.randrange(700, len(photo) // 2)
    return [request(photo[:at] + bytes(len(photo) - at))]


def _bomb(r: Random, photo: bytes, limit: int) -> list[bytes]:
    at = photo.index(b"\xff\xc0") + 5
    side = r.randrange(2000, 65501).to_bytes(2, "big")
    return [request(photo[:at] + side + side + photo[at + 4 :])]


def _scans(r: Random, photo: bytes, limit: int) -> list[bytes]:
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\x00"
    return [request(photo[:-2] + scan * r.randrange(150, 20_000) + b"\xff\xd9")]


def _other_types(r: Random, photo: bytes, limit: int) -> list[bytes]:
    kinds = [
        "text/html",
        "image/png",
        "application/x-npy",
        "application/python-pickle",
        "",
        "a" * 999,
    ]
    return [request(photo, r.choice(kinds))]


def _no_photo(r: Random, photo: bytes, limit: int) -> list[bytes]:
    bodies = [b"", b"\x89PNG\r\n\x1a\n" + photo, b"\x80\x04cos\nsystem\n(S'id'\ntR.",
              b"GIF89a", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8" + r.randbytes(5000),
              r.randbytes(99)]  # fmt: skip
    return [request(r.choice(bodies))]


def _as_json(value: Any) -> list[bytes]:
    return [request(json.dumps(value).encode(), "application/json")]


def _json(r: Random, photo: bytes, limit: int) -> list[bytes]:
    values: list[Any] = [None, 1, "x", [], {}, {"instances": 3}, {"instances": [{}] * 5},
              {"instances": {}},
              {"image": 3}, {"image": None}, {"image": {"$ref": "file:///etc/passwd"}},
              {"image": "../../etc/passwd"}, {"image": "x", "__class__": "os.system"},
              {"image": "/9j/", "expected_quantity": "3"}, {"image": "/9j/", "id": ["x"]},
              {"image": "/9j/", "expected_quantity": 1e9}]  # fmt: skip
    return _as_json(r.choice(values))


def _deep(r: Random, photo: bytes, limit: int) -> list[bytes]:
    start = r.choice([b"[", b'{"a":', b'{"instances":['])
    return [request(start * r.randrange(5000, 100_000), "application/json")]


def _wide(r: Random, photo: bytes, limit: int) -> list[bytes]:
    value = r.choice([b"{},", b"[],", b"0,", b'"",'])
    body = b'{"instances":[' + value * r.randrange(100_000, 400_000) + b"0]}"
    return [request(body, "application/json")]


def _base64(r: Random, photo: bytes, limit: int) -> list[bytes]:
    text = base64.b64encode(photo[: r.randrange(10, 3000)]).decode()
    return _as_json({"instances": [{"image": text[: r.randrange(len(text))]}, {"image": "=" * 9}]})


def _form(r: Random, photo: bytes, limit: int) -> list[bytes]:
    names = [
        "../../etc/passwd",
        "/dev/zero",
        "$(reboot)",
        "a\0b",
        "x" * 5000,
        "%2e%2e%2f",
        "\u202e",
    ]
    disposition = f'Content-Disposition: form-data; name="p"; filename="{r.choice(names)}"'
    part = b"--b\r\n" + disposition.encode() + b"\r\n\r\nno photo\r\n"
    bodies = [part + b"--b--", part, part * 500 + b"--b--", b"--b" * 9999, b"--b\r\n\r\n--b--", b""]
    kind = "multipart/form-data" + r.choice(["", "; boundary=b", "; boundary=", "; boundary=(.*)*"])
    return [request(r.choice(bodies), kind)]


def _huge(r: Random, photo: bytes, limit: int) -> list[bytes]:
    return [request(photo + bytes(limit))]


def _huge_chunked(r: Random, photo: bytes, limit: int) -> list[bytes]:
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    chunk = b"%x\r\n%b\r\n" % (65536, bytes(65536))
    return [head + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * (limit // 65536 + 2)]


def _paths(r: Random, photo: bytes, limit: int) -> list[bytes]:
    paths = ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/invocations/", "//", "/ping/../x",
             "/invocations%00.jpg", "/" + "a" * 20_000, "/openapi.json/..;/", "/C:\\x", "/ping\\..",
             "http://169.254.169.254/latest", "*"]  # fmt: skip
    return [request(photo, path=r.choice(paths))]


def _methods(r: Random, photo: bytes, limit: int) -> list[bytes]:
    method = r.choice(["GET", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS"])
    return [f"{method} /invocations HTTP/1.1\r\nHost: x\r\n\r\n".encode()]


def _no_http(r: Random, photo: bytes, limit: int) -> list[bytes]:
    return [
        r.choice(
            [
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + r.randbytes(500),
                b"POST /invocations HTTP/9.9\r\n\r\n",
                b"BOGUS / HTTP/1.1\r\n\r\n",
                b"POST /invocations HTTP/1.1\r\nbad header\r\n\r\n",
                b"POST /invocations HTTP/1.1\r\nContent-Type: image/jpeg\r\n"
                b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
                r.randbytes(300) + b"\r\n\r\n",
            ]
        )
    ]


def _giant_head(r: Random, photo: bytes, limit: int) -> list[bytes]:
    start = b"POST /invocations HTTP/1.1\r\nX-Header: "
    return [start, *[b"a" * 50_000] * r.randrange(3, 9)]


def _lengths(r: Random, photo: bytes, limit: int) -> list[bytes]:
    values = [b"-1", b"1e9", b"0x10", b"99999999999999999999999", b"5, 6",
              b"5\r\nContent-Length: 6", b"5\r\nTransfer-Encoding: chunked",
              b"999999999999"]  # fmt: skip
    head = b"POST /invocations HTTP/1.1\r\nContent-Type: image/jpeg\r\nContent-Length: "
    return [head + r.choice(values) + b"\r\n\r\nhello"]


def _quantity(r: Random, photo: bytes, limit: int) -> list[bytes]:
    value = r.choice(["-1", "1.5", "1;drop", "%00", "9" * 999, "1&expected_quantity=2", "nan"])
    return [request(photo, path=f"/invocations?expected_quantity={value}")]


def _many_headers(r: Random, photo: bytes, limit: int) -> list[bytes]:
    start = b"POST /invocations HTTP/1.1\r\nHost: x\r\n"
    return [start, *[b"a:\r\n" * r.randrange(200, 2000)] * 10, b"\r\n"]


CHUNKED = (
    b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
FLOOD_BYTES = 16_000_000
"""Kept as they come, these would be some hundreds of megabytes of Python's objects."""


def _flood(piece: bytes, start: bytes = CHUNKED) -> list[bytes]:
    piece *= max(1, 65536 // len(piece))
    return [start, *[piece] * (FLOOD_BYTES // len(piece))]


def _trailers(r: Random, photo: bytes, limit: int) -> list[bytes]:
    start = CHUNKED + r.choice([b"", b"5\r\nhello\r\n"]) + b"0\r\n"
    line = r.choice([b"a:b\r\n", b"Trailer: %b\r\n" % (b"x" * 1000), b"x"])
    return _flood(line, start)


def _chunk_extensions(r: Random, photo: bytes, limit: int) -> list[bytes]:
    return _flood(b"1;%b\r\nx\r\n" % (b"a=b;" * r.randrange(10, 5000)))


def _tiny_chunks(r: Random, photo: bytes, limit: int) -> list[bytes]:
    return _flood(b"1\r\nx\r\n")


def _endless_chunk_size(r: Random, photo: bytes, limit: int) -> list[bytes]:
    return _flood(r.choice([b"0", b"f", b";x"]), CHUNKED + b"0")


def _expecting(r: Random, photo: bytes, limit: int) -> list[bytes]:
    whole = request(b"x" * 2 * limit, more="Expect: 100-continue\r\n")
    return [whole[: whole.index(b"\r\n\r\n") + 4]]


def _host(r: Random, photo: bytes, limit: int) -> list[bytes]:
    host = r.choice(["[", "[::1", "]", "a b", "\xff", "", "x:99999999", "[v1.x]", "//", "x?y#z"])
    kind = f"POST /invocations?{'a' * r.randrange(9)} HTTP/1.1\r\nHost: {host}\r\n".encode(
        "latin-1"
    )
    return [kind + b"Content-Type: image/jpeg\r\nContent-Length: 2\r\n\r\n\xff\xd8"]


def _blank_lines(r: Random, photo: bytes, limit: int) -> list[bytes]:
    return _flood(b"\r\n", b"\r\n")
