"""Whoever means ill gets a 4xx, and nobody else notices."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serving.conftest import Server
from tests.serving.hostile import attacks, request, send_raw

LIMIT_BYTES = 2_000_000


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


class Bystander:
    """A client that goes on asking while others attack."""

    def __init__(self, server: Server, photo: bytes) -> None:
        self._server, self._photo = server, photo
        self.statuses: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._over.is_set():
            self.statuses.append(self._server.post(self._photo).status)
            self._over.wait(0.05)

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def attack(server: Server, photos: list[bytes], number: int, seed: int) -> None:
    with Bystander(server, photos[0]) as bystander, ThreadPoolExecutor(4) as pool:
        sent = list(attacks(number, photos, LIMIT_BYTES, seed))
        answers = list(pool.map(lambda one: one[1](server.port), sent))
    wrong = [
        (name, answer[:300])
        for (name, _), answer in zip(sent, answers, strict=True)
        if not 400 <= status(answer) < 500
    ]
    assert wrong == []
    assert all(b'"reason"' in answer for answer in answers), "each is told why"
    assert bystander.statuses
    assert set(bystander.statuses) == {200}
    assert server.get("/ping").status == 200


def test_hostile_requests_are_refused_and_others_are_served(
    server: Server, photos: list[bytes]
) -> None:
    attack(server, photos, 285, seed=1)


@pytest.mark.slow
def test_a_thousand_hostile_requests(server: Server, photos: list[bytes]) -> None:
    attack(server, photos, 1000, seed=2)


def test_slow_requests_are_ended_and_others_are_served(server: Server, photos: list[bytes]) -> None:
    whole = request(photos[0])
    cut = whole.index(b"\r\n\r\n") + 4
    head, body = whole[:cut], whole[cut:]
    drops = [bytes([byte]) for byte in body[:140]]

    def slow_head() -> bytes:
        return send_raw(server.port, *[bytes([byte]) for byte in head[:60]], pause_s=0.2)

    def slow_body() -> bytes:
        return send_raw(server.port, head, *drops, pause_s=0.05)

    def no_body() -> bytes:
        return send_raw(server.port, head)

    with Bystander(server, photos[0]) as bystander, ThreadPoolExecutor(12) as pool:
        slow = [pool.submit(send) for send in (slow_head, slow_body, no_body) * 4]
        assert {status(one.result()) for one in slow} == {408}
    assert set(bystander.statuses) == {200}


def test_a_flood_is_asked_to_come_again(server: Server, photos: list[bytes]) -> None:
    form = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="p"; filename="p"\r\n\r\n%b\r\n' % photo
        for photo in photos[:8]
    )

    def flood(_: int) -> tuple[int, str | None]:
        reply = server.post(form + b"--b--\r\n", "multipart/form-data; boundary=b")
        return reply.status, reply.headers.get("Retry-After")

    with ThreadPoolExecutor(48) as pool:
        replies = list(pool.map(flood, range(192)))
    assert {code for code, _ in replies} == {200, 429}
    assert all(int(after or 0) >= 1 for code, after in replies if code == 429)
    assert server.post(photos[0]).status == 200
