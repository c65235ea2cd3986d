"""Whoever means ill gets a 4xx, and nobody else notices."""

from __future__ import annotations

import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serving.conftest import Client
from tests.serving.http.floods import FLOODS
from tests.serving.http.hostile import attacks, request, send_raw

LIMIT_BYTES = 2_000_000
MOST_GROWTH_MIB = 64


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


class Bystander:
    """A client that goes on asking while others attack."""

    def __init__(self, server: Client, photo: bytes) -> None:
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


class Memory:
    """How much more memory a server and all of its processes take, at most, than before."""

    def __init__(self, server: Client, photo: bytes) -> None:
        for _ in range(16):  # What the first photos take is not an attack's.
            server.post(photo)
        self._server = server
        self._over = threading.Event()
        self._before = self._most = server.memory_mib()
        self._thread = threading.Thread(target=self._look)

    @property
    def grown_mib(self) -> float:
        return self._most - self._before

    def _look(self) -> None:
        while not self._over.wait(0.3):
            self._most = max(self._most, self._server.memory_mib())

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def attack(server: Client, photos: list[bytes], number: int, seed: int) -> None:
    with (
        Memory(server, photos[0]) as memory,
        Bystander(server, photos[0]) as bystander,
        ThreadPoolExecutor(4) as pool,
    ):
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
    assert memory.grown_mib < MOST_GROWTH_MIB
    assert server.get("/ping").status == 200


def test_hostile_requests_are_refused_and_others_are_served(
    server: Client, photos: list[bytes]
) -> None:
    attack(server, photos, 270, seed=1)


@pytest.mark.slow
def test_a_thousand_hostile_requests(server: Client, photos: list[bytes]) -> None:
    attack(server, photos, 1000, seed=2)


def test_slow_requests_are_ended_and_others_are_served(server: Client, photos: list[bytes]) -> None:
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


@pytest.fixture
def descriptors() -> None:
    """Enough open files for this process to be a crowd."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize(
    "flood",
    [
        name if name in ("idle", "bodies") else pytest.param(name, marks=pytest.mark.slow)
        for name in FLOODS
    ],
)
def test_a_crowd_of_connections_gives_way_to_whoever_asks(
    flood: str, server: Client, photos: list[bytes]
) -> None:
    with Memory(server, photos[0]) as memory, Bystander(server, photos[0]) as bystander:
        FLOODS[flood](server.port, photos, 2.0)
    assert bystander.statuses
    assert set(bystander.statuses) == {200}
    assert memory.grown_mib < MOST_GROWTH_MIB


def test_photos_of_clients_that_left_are_given_up(server: Client, photos: list[bytes]) -> None:
    def metric(name: str) -> float:
        lines = server.get("/metrics").body.decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def wait_for(condition: Callable[[], bool]) -> None:
        for _ in range(100):
            if condition():
                return
            time.sleep(0.05)
        raise AssertionError("it never came to that")

    (worker,) = server.workers()
    os.kill(worker, signal.SIGSTOP)
    try:
        crowd = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(10)]
        for one in crowd:
            one.sendall(request(photos[0]))
        wait_for(lambda: metric("bintally_queue_photos") > 0)
        for one in crowd:
            one.close()
        # The worker could not have taken them.
        wait_for(lambda: metric("bintally_queue_photos") == 0)
        wait_for(lambda: metric("bintally_held_bytes") == 0)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert server.post(photos[0]).status == 200


def test_another_protocol_is_refused_by_name(server: Client, photos: list[bytes]) -> None:
    for kind in ("websocket", "h2c"):
        more = f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {kind}\r\n"
        answer = send_raw(server.port, request(photos[0], more=more), b"no HTTP at all")
        assert status(answer) == 400
        assert b"without Upgrade" in answer


def test_who_waits_for_100_continue_gets_it_unless_the_head_says_enough(
    server: Client, photos: list[bytes]
) -> None:
    expects = "Expect: 100-continue\r\nConnection: close\r\n"
    whole = request(photos[0], more=expects)
    assert send_raw(server.port, whole).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
    head = request(b"", more=expects).replace(b"Content-Length: 0", b"Content-Length: 99999999")
    assert send_raw(server.port, head).startswith(b"HTTP/1.1 413 ")


def test_what_is_sent_ahead_of_an_answer_is_not_read(server: Client, photos: list[bytes]) -> None:
    answer = send_raw(server.port, request(photos[0]) * 3)
    assert status(answer) == 200
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer.lower()


def test_a_flood_is_asked_to_come_again(server: Client, photos: list[bytes]) -> None:
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
