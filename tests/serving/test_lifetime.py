"""How a server goes through trouble, from its start to its end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bintally.counting.checkpoint import read_checkpoint
from serving.server import DRAIN_S, LAME_DUCK_S
from tests.serving.conftest import Reply, Server, StartServer
from tests.serving.test_server import as_batch


class Load:
    """Clients that send a photo after the other, and remember every reply."""

    def __init__(
        self, ask: Callable[[bytes], Reply], photos: Sequence[bytes], clients: int
    ) -> None:
        self.replies: list[Reply] = []
        self.failures: list[Exception] = []
        self._ask, self._photos = ask, photos
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(clients)]

    def _run(self, turn: int) -> None:
        while not self._over.is_set():
            try:
                self.replies.append(self._ask(self._photos[turn % len(self._photos)]))
            except Exception as error:
                self.failures.append(error)
                time.sleep(0.05)
            turn += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
        until = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < until, "it never came to that"
            time.sleep(0.1)


TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def sturdy(
    checkpoint: Path, start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> Server:
    """A server to be troubled: a checkpoint of its own, two workers and a token."""
    own = tmp_path_factory.mktemp("sturdy") / "best.pt"
    shutil.copy(checkpoint, own)
    return start_server(own, "--replicas", 2, BINTALLY_TOKEN=TOKEN)


def ask_with_token(server: Server, photo: bytes) -> Reply:
    return server.post(photo, Authorization=f"Bearer {TOKEN}")


@pytest.mark.slow
def test_it_is_alive_before_it_is_ready(sturdy: Server, photos: list[bytes]) -> None:
    early = sturdy.get("/ping")
    refused = ask_with_token(sturdy, photos[0])
    assert (early.status, early.json["status"]) == (503, "starting")
    assert refused.status == 503
    assert int(refused.headers["Retry-After"]) > 0
    sturdy.wait_until_ready()
    assert (sturdy.get("/ping").status, sturdy.get("/ping").json["status"]) == (200, "ready")


@pytest.mark.slow
def test_without_its_token_nothing_is_counted(sturdy: Server, photos: list[bytes]) -> None:
    sturdy.wait_until_ready()
    for authorization in ("", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x"):
        reply = sturdy.post(photos[0], Authorization=authorization)
        assert reply.status == 401
        assert reply.headers["WWW-Authenticate"] == "Bearer"
    assert sturdy.get("/metrics").status == 401
    assert ask_with_token(sturdy, photos[0]).status == 200
    assert TOKEN.encode() not in Path(f"/proc/{sturdy.process.pid}/cmdline").read_bytes()


@pytest.mark.slow
def test_a_replaced_checkpoint_is_taken_in_without_a_lost_request(
    sturdy: Server, photos: list[bytes], other_checkpoint: Path
) -> None:
    sturdy.wait_until_ready()
    old, new = (read_checkpoint(file)[1] for file in (sturdy.checkpoint, other_checkpoint))
    with Load(lambda photo: ask_with_token(sturdy, photo), photos, clients=4) as load:
        load.wait_for(lambda: len(load.replies) > 20)
        shutil.copy(other_checkpoint, sturdy.checkpoint)
        load.wait_for(lambda: all(reply.json["model"] == new for reply in load.replies[-20:]))
    assert load.failures == []
    assert {reply.status for reply in load.replies} == {200}
    assert {reply.json["model"] for reply in load.replies} == {old, new}


@pytest.mark.slow
def test_a_checkpoint_that_is_none_is_refused_and_the_old_one_serves_on(
    sturdy: Server, photos: list[bytes]
) -> None:
    sturdy.wait_until_ready()
    served = ask_with_token(sturdy, photos[0]).json["model"]
    sturdy.checkpoint.write_bytes(sturdy.checkpoint.read_bytes()[:5000])
    sturdy.wait_for_log("new checkpoint refused: ")
    assert ask_with_token(sturdy, photos[0]).json["model"] == served


@pytest.mark.slow
def test_a_killed_worker_comes_back_with_what_was_served_and_no_request_notices(
    sturdy: Server, photos: list[bytes]
) -> None:
    sturdy.wait_until_ready()
    served = ask_with_token(sturdy, photos[0]).json["model"]
    victim, survivor = sturdy.workers()
    with Load(lambda photo: ask_with_token(sturdy, photo), photos, clients=6) as load:
        load.wait_for(lambda: len(load.replies) > 20)
        os.kill(victim, signal.SIGKILL)
        load.wait_for(lambda: sturdy.get("/ping").json["replicas"] == 1)
        load.wait_for(lambda: sturdy.get("/ping").json["replicas"] == 2)
        at = len(load.replies)
        load.wait_for(lambda: len(load.replies) > at + 50)
    assert load.failures == []
    assert {reply.status for reply in load.replies} == {200}
    assert {reply.json["model"] for reply in load.replies} == {served}
    assert survivor in sturdy.workers()
    assert "a worker was killed by signal 9; another one starts\n" in sturdy.log


@pytest.mark.slow
def test_sigterm_leaves_a_balancer_time_and_ends_it_once_all_is_answered(
    sturdy: Server, photos: list[bytes]
) -> None:
    sturdy.wait_until_ready()
    big = as_batch(photos * 2)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    pings, late = [], []
    with (
        ThreadPoolExecutor(6) as pool,
        socket.create_connection(("127.0.0.1", sturdy.port), timeout=60) as begun,
    ):
        waiting = [pool.submit(sturdy.post, big, "application/json", **headers) for _ in range(6)]
        while not any(one.done() for one in waiting):
            time.sleep(0.005)
        sturdy.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(OSError):
            while True:  # Until nobody listens any more.
                pings.append(sturdy.get("/ping"))
                late.append(ask_with_token(sturdy, photos[0]))
                if len(pings) == 2:
                    begun.sendall(b"GET /openapi.json HTTP/1.1\r\n")
                time.sleep(0.2)
        begun.sendall(b"Host: x\r\n\r\n")
        assert begun.recv(99).startswith(b"HTTP/1.1 200 OK")
        code = sturdy.process.wait(60)
        replies = [one.result() for one in waiting]
    assert code == 0
    assert len(pings) > 2
    assert {ping.json["status"] for ping in pings[1:]} == {"draining"}
    assert {ping.status for ping in pings[1:]} == {503}
    assert {reply.status for reply in late} == {200}
    assert {reply.headers["Connection"] for reply in late[1:]} == {"close"}
    assert {reply.status for reply in replies} == {200}
    assert all(len(reply.json["predictions"]) == 40 for reply in replies)
    assert "drained and stopped" in sturdy.log
    assert sturdy.processes() == []
    assert not [line for line in sturdy.log.splitlines() if "Traceback" in line]


def test_sagemaker_need_not_kill() -> None:
    assert LAME_DUCK_S + DRAIN_S < 30


@pytest.mark.slow
def test_workers_end_with_their_server_however_that_ends(
    checkpoint: Path, start_server: StartServer
) -> None:
    server = start_server(checkpoint, "--replicas", 2)
    server.wait_until_ready()
    assert len(server.workers()) == 2
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    for _ in range(100):
        if not server.processes():
            break
        time.sleep(0.1)
    assert server.processes() == []
