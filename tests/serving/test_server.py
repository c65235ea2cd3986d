"""A real server: its routes, its exactness, and how it goes through trouble."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bintally.counting.checkpoint import read_checkpoint
from bintally.dataset.manifest import read_dataset
from bintally.dataset.samples import Samples
from bintally.device import precision_type
from bintally.loading.engines import make_engine
from bintally.storage.opening import open_place
from serving.config import ServeConfig
from serving.server import DRAIN_S, LAME_DUCK_S, STOP_S
from sharding.build import build
from sharding.distribute import Processes
from sharding.planning.plan import Options
from tests.conftest import Command
from tests.serving.conftest import Reply, Server, StartServer
from training.evaluate import evaluate
from training.launch.distributed import joined


def as_batch(photos: Sequence[bytes], **more: Any) -> bytes:
    instances = [{"image": base64.b64encode(photo).decode(), **more} for photo in photos]
    return json.dumps({"instances": instances}).encode()


def same_as_evaluate(server: Server, shards: Path, split: str, number: int) -> None:
    """The server's answers, in batches of odd sizes, are what `evaluate` computes.

    To the last bits: those depend, on some CPUs, on how many photos are computed together.
    """
    checkpoint, _ = read_checkpoint(server.checkpoint)
    model, preprocessing = checkpoint.build()
    place = open_place(shards)
    samples = Samples(place, read_dataset(place), split)
    number = min(number, len(samples))
    with joined("cpu") as process:
        evaluation = evaluate(
            model,
            samples,
            checkpoint.classes,
            make_engine("cpu", preprocessing, process.device, 128),
            process,
            batch_size=128,
            precision=precision_type("auto", process.device),
        )
    photos = [samples.photo(i).tobytes() for i in range(number)]
    answers = []
    for begin in range(0, number, 7):
        reply = server.post(as_batch(photos[begin : begin + 7]), "application/json")
        assert reply.status == 200
        answers += reply.json["predictions"]
    wanted = evaluation.predicted[:number].tolist()
    assert [checkpoint.classes.index(answer["count"]) for answer in answers] == wanted
    for answer, probabilities in zip(answers, evaluation.probabilities, strict=False):
        assert [*answer["probabilities"].values()] == pytest.approx(probabilities, abs=1e-6)


def test_an_answer_is_evaluates(server: Server, shards: Path) -> None:
    same_as_evaluate(server, shards, "train", 200)


def test_answers_for_200_real_photos_are_evaluates(
    server: Server, abid: Path, tmp_path: Path
) -> None:
    options = Options(split=(0.2, 0.2, 0.6), limit=400)
    source, output = open_place(abid / "bucket"), open_place(tmp_path)
    build(source, output, options, distributor=Processes(1), connections=8)
    same_as_evaluate(server, tmp_path, "test", 200)


def test_sagemakers_contract(server: Server, photos: list[bytes]) -> None:
    assert server.get("/ping").status == 200
    sha256 = read_checkpoint(server.checkpoint)[1]
    for kind in ("image/jpeg", "application/x-image"):
        reply = server.post(photos[0], kind)
        assert reply.status == 200
        assert reply.headers["Content-Type"] == "application/json"
        answer = reply.json
        assert answer["model"] == sha256
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert answer["confidence"] == answer["probabilities"][str(answer["count"])]
        assert answer["milliseconds"] > 0
    attributes = {"X_Amzn_SageMaker_Custom_Attributes": "expected_quantity=3"}
    assert server.post(photos[0], **attributes).json["expected_quantity"] == 3
    assert server.post(photos[0], query="?expected_quantity=3").json["matches"] in (True, False)


def test_a_batch_is_answered_in_order_and_a_bad_photo_fails_alone(
    server: Server, photos: list[bytes]
) -> None:
    single = [server.post(photo).json["probabilities"] for photo in photos[:3]]
    batch = [photos[0], photos[1][: len(photos[1]) // 2], b"no photo", photos[2]]
    reply = server.post(as_batch(batch, id="x", expected_quantity=1), "application/json")
    assert reply.status == 200
    good, cut, none, last = reply.json["predictions"]
    assert [good["probabilities"], last["probabilities"]] == [single[0], single[2]]
    assert cut["error"]["status"] == 400
    assert "does not decode" in cut["error"]["reason"]
    assert none["error"]["status"] == 415
    assert good["id"] == cut["id"] == "x"
    assert good["verdict"] in ("match", "mismatch", "unsure")
    assert server.post(as_batch(batch[1:3]), "application/json").status == 400


def test_turned_and_grey_photos_are_counted_as_sharding_stores_them(
    server: Server, photos: list[bytes]
) -> None:
    import io

    from PIL import Image

    from bintally.dataset.photo import prepare_photo

    turned, grey = io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.open(io.BytesIO(photos[0]))
    photo.save(turned, "JPEG", exif=exif)
    photo.convert("L").save(grey, "JPEG")
    for data in (turned.getvalue(), grey.getvalue()):
        stored = prepare_photo(data, None).data
        assert stored != data
        assert server.post(data).json["probabilities"] == server.post(stored).json["probabilities"]


def test_prometheus_is_told_what_happens(server: Server, photos: list[bytes]) -> None:
    def counted() -> float:
        lines = server.get("/metrics").body.decode().splitlines()
        return sum(
            float(x.split()[1])
            for x in lines
            if x.startswith('bintally_photos_total{outcome="counted')
        )

    before = counted()
    server.post(as_batch(photos[:3]), "application/json")
    assert counted() == before + 3
    text = server.get("/metrics").body.decode()
    sha256 = read_checkpoint(server.checkpoint)[1]
    assert f'bintally_model{{sha256="{sha256}"}} 1.0' in text
    assert "bintally_replicas 1.0" in text


def test_the_description_names_every_route(server: Server) -> None:
    api = server.get("/openapi.json").json
    assert api["openapi"].startswith("3.1")
    assert set(api["paths"]) == {"/ping", "/invocations", "/metrics"}
    content = api["paths"]["/invocations"]["post"]["requestBody"]["content"]
    assert {"image/jpeg", "application/x-image", "application/json", "multipart/form-data"} == set(
        content
    )
    answer = server.post(as_batch([]), "application/json")
    assert answer.status == 400
    text = json.dumps(api)
    for reference in {
        part.split('"')[0] for part in text.split('"$ref": "#/components/schemas/')[1:]
    }:
        assert reference in api["components"]["schemas"]


def test_the_page_needs_nothing_from_elsewhere(server: Server) -> None:
    reply = server.get("/")
    assert reply.status == 200
    policy = reply.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    html = reply.body.decode()
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "https://" not in html
    assert html.count("<script") == html.count("<style") == 1


def test_it_listens_on_localhost_only(server: Server) -> None:
    hexadecimal = f":{server.port:04X} "
    listening = [
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()
        if hexadecimal in line and line.split()[3] == "0A"
    ]
    assert listening == [f"0100007F:{server.port:04X}"]


@pytest.mark.parametrize("kind", ["text", pytest.param("archive", marks=pytest.mark.slow)])
def test_a_checkpoint_that_is_none_ends_it_with_one_line(
    kind: str, tmp_path: Path, run: Command
) -> None:
    fake = tmp_path / "fake.pt"
    fake.write_bytes(b"no checkpoint")
    if kind == "archive":  # As a checkpoint is one: that it holds none shows once Ray has started.
        with zipfile.ZipFile(fake, "w") as archive:
            archive.writestr("data.pkl", b"no checkpoint")
    result = run("serving", "--checkpoint", fake, "--port", 0)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: {fake}: not a checkpoint")


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
    """A server to be troubled: a checkpoint of its own, two replicas and a token."""
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


def test_without_its_token_nothing_is_counted(sturdy: Server, photos: list[bytes]) -> None:
    sturdy.wait_until_ready()
    for authorization in ("", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x"):
        reply = sturdy.post(photos[0], Authorization=authorization)
        assert reply.status == 401
        assert reply.headers["WWW-Authenticate"] == "Bearer"
    assert sturdy.get("/metrics").status == 401
    assert ask_with_token(sturdy, photos[0]).status == 200
    assert TOKEN.encode() not in Path(f"/proc/{sturdy.process.pid}/cmdline").read_bytes()


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


def test_a_checkpoint_that_is_none_is_refused_and_the_old_one_serves_on(
    sturdy: Server, photos: list[bytes]
) -> None:
    sturdy.wait_until_ready()
    served = ask_with_token(sturdy, photos[0]).json["model"]
    sturdy.checkpoint.write_bytes(sturdy.checkpoint.read_bytes()[:5000])
    sturdy.wait_for_log("new checkpoint refused: ")
    assert ask_with_token(sturdy, photos[0]).json["model"] == served


def test_a_killed_replica_comes_back_with_what_was_served(
    sturdy: Server, photos: list[bytes]
) -> None:
    sturdy.wait_until_ready()
    served = ask_with_token(sturdy, photos[0]).json["model"]
    victim, survivor = sturdy.replicas()
    with Load(lambda photo: ask_with_token(sturdy, photo), photos, clients=6) as load:
        load.wait_for(lambda: len(load.replies) > 20)
        os.kill(victim, signal.SIGKILL)
        load.wait_for(lambda: len(set(sturdy.replicas()) - {victim}) == 2)
        at = len(load.replies)
        load.wait_for(lambda: len(load.replies) > at + 50)
    # What the dead one had is counted again; whoever was not that lucky was told so.
    assert load.failures == []
    failed = [reply for reply in load.replies if reply.status != 200]
    assert len(failed) <= 2 * 8, "no more than were in it"
    assert all(reply.status == 503 and "died" in reply.reason for reply in failed)
    assert {reply.json["model"] for reply in load.replies if reply.status == 200} == {served}
    assert survivor in sturdy.replicas()


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
    assert sturdy.replicas() == []
    assert not [line for line in sturdy.log.splitlines() if "Traceback" in line]


def test_sagemaker_need_not_kill() -> None:
    assert LAME_DUCK_S + DRAIN_S + STOP_S < 30


@pytest.mark.slow
def test_a_lost_ray_ends_it_for_its_supervisor(checkpoint: Path, start_server: StartServer) -> None:
    server = start_server(checkpoint, "--replicas", 1)
    server.wait_until_ready()
    for raylet in server.processes(b"raylet/raylet"):
        os.kill(raylet, signal.SIGKILL)
    assert server.process.wait(120) == 1
    assert server.log.splitlines()[-1].startswith("error: Ray has not answered for 30 s")
    for _ in range(100):  # Ray's reaper gives them a second.
        if not server.processes(b""):
            break
        time.sleep(0.1)
    assert server.processes(b"") == []


def test_an_answer_does_not_wait_for_the_client_to_acknowledge_its_head() -> None:
    """Nagle's algorithm and delayed acknowledgements together cost 40 ms a request."""
    with ServeConfig(checkpoint=Path("best.pt"), port=0).bind() as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()):
            connection, _ = listener.accept()
            with connection:
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
