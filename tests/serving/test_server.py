"""A real server: its routes, its exactness, and how it goes through trouble."""

from __future__ import annotations

import base64
import json
import socket
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bintally.counting.checkpoint import read_checkpoint
from bintally.counting.decision import Decision
from bintally.dataset.manifest import read_dataset
from bintally.dataset.samples import Samples
from bintally.device import precision_type
from bintally.loading.engines import make_engine
from bintally.storage.opening import open_place
from serving.config import ServeConfig
from sharding.build import build
from sharding.distribute import Processes
from sharding.planning.options import Options
from tests.conftest import Command
from tests.serving.conftest import Client, Server
from training.evaluate import evaluate
from training.launch.distributed import joined


def as_batch(photos: Sequence[bytes], **more: Any) -> bytes:
    instances = [{"image": base64.b64encode(photo).decode(), **more} for photo in photos]
    return json.dumps({"instances": instances}).encode()


def same_as_evaluate(server: Client, shards: Path, split: str, number: int) -> None:
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
    evaluation = replace(evaluation, decision=Decision.from_dict(checkpoint.decision))
    photos = [samples.photo(i).tobytes() for i in range(number)]
    answers = []
    for begin in range(0, number, 7):
        reply = server.post(as_batch(photos[begin : begin + 7]), "application/json")
        assert reply.status == 200
        answers += reply.json["predictions"]
    wanted = evaluation.predicted(checkpoint.classes)[:number].tolist()
    assert [checkpoint.classes.index(answer["count"]) for answer in answers] == wanted
    for answer, probabilities in zip(answers, evaluation.probabilities, strict=False):
        assert [*answer["probabilities"].values()] == pytest.approx(probabilities, abs=1e-6)


def test_an_answer_is_evaluates(server: Client, shards: Path) -> None:
    same_as_evaluate(server, shards, "train", 200)


def test_answers_for_200_real_photos_are_evaluates(
    server: Client, abid: Path, tmp_path: Path
) -> None:
    options = Options(split=(0.2, 0.2, 0.6), limit=400)
    source, output = open_place(abid / "bucket"), open_place(tmp_path)
    build(source, output, options, distributor=Processes(1), connections=8)
    same_as_evaluate(server, tmp_path, "test", 200)


def test_sagemakers_contract(server: Client, photos: list[bytes]) -> None:
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
    server: Client, photos: list[bytes]
) -> None:
    single = [server.post(photo).json["probabilities"] for photo in photos[:3]]
    batch = [photos[0], photos[1][: len(photos[1]) // 2], b"no photo", photos[2]]
    reply = server.post(as_batch(batch, id="x", expected_quantity=1), "application/json")
    assert reply.status == 200
    good, cut, none, last = reply.json["predictions"]
    # In fp32, some CPUs round otherwise for another number of photos.
    assert good["probabilities"] == pytest.approx(single[0], abs=1e-6)
    assert last["probabilities"] == pytest.approx(single[2], abs=1e-6)
    assert cut["error"]["status"] == 400
    assert "does not decode" in cut["error"]["reason"]
    assert none["error"]["status"] == 415
    assert good["id"] == cut["id"] == "x"
    assert good["verdict"] in ("match", "mismatch", "unsure")
    assert server.post(as_batch(batch[1:3]), "application/json").status == 400


def test_turned_and_grey_photos_are_counted_as_sharding_stores_them(
    server: Client, photos: list[bytes]
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


def test_prometheus_is_told_what_happens(server: Client, photos: list[bytes]) -> None:
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


def test_the_description_names_every_route(server: Client) -> None:
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


def test_the_page_needs_nothing_from_elsewhere(server: Client) -> None:
    reply = server.get("/")
    assert reply.status == 200
    policy = reply.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    html = reply.body.decode()
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "https://" not in html
    assert html.count("<script") == html.count("<style") == 1


def test_it_listens_on_localhost_only(one_machine: Server) -> None:
    hexadecimal = f":{one_machine.port:04X} "
    listening = [
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()
        if hexadecimal in line and line.split()[3] == "0A"
    ]
    assert listening == [f"0100007F:{one_machine.port:04X}"]


@pytest.mark.parametrize("kind", ["text", pytest.param("archive", marks=pytest.mark.slow)])
def test_a_checkpoint_that_is_none_ends_it_with_one_line(
    kind: str, tmp_path: Path, run: Command
) -> None:
    fake = tmp_path / "fake.pt"
    fake.write_bytes(b"no checkpoint")
    if kind == "archive":  # As a checkpoint is one: that it holds none shows in a worker.
        with zipfile.ZipFile(fake, "w") as archive:
            archive.writestr("data.pkl", b"no checkpoint")
    result = run("serving", "--checkpoint", fake, "--port", 0)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: {fake}: not a checkpoint")


def test_an_answer_does_not_wait_for_the_client_to_acknowledge_its_head() -> None:
    """Nagle's algorithm and delayed acknowledgements together cost 40 ms a request."""
    with ServeConfig(checkpoint=Path("best.pt"), port=0).bind() as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()):
            connection, _ = listener.accept()
            with connection:
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
