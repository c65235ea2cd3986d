"""What the serving benchmark may be relied on for: its clients, and a whole report."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import pytest

import benchmarks.serving.benchmark as serving
from benchmarks.serving.benchmark import Plan
from benchmarks.serving.load import Load, drive
from bintally.errors import UsageError, WorkError

BRIEF = Plan(num_rounds=1, seconds=0.2, warm_up_s=0.1)


def test_latencies_of_a_load_are_those_of_its_requests() -> None:
    load = Load(2.0, [milliseconds / 1e3 for milliseconds in range(1, 101)], ["503"])
    assert load.per_second == 50, "an error is no answer"
    assert [load.percentile_ms(p) for p in (50, 95, 99, 100)] == pytest.approx([50, 95, 99, 100])


@contextmanager
def answering(statuses: Iterator[int], received: list[bytes]) -> Iterator[int]:
    """A server that answers with one status after the other; its port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(next(statuses))
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server.server_port
        server.shutdown()


def test_clients_send_every_photo_and_tell_answers_from_errors() -> None:
    received: list[bytes] = []
    photos = [bytes([i]) * 1000 for i in range(6)]
    with answering((503 if i % 3 == 0 else 200 for i in count()), received) as port:
        load = drive(port, photos, clients=4, seconds=0.5)
    assert {*received} == {*photos}
    assert set(load.errors) == {"503"}
    assert len(load.latencies_s) + len(load.errors) == len(received)
    assert len(load.errors) == -(-len(received) // 3)
    assert load.seconds >= 0.5


def test_a_server_that_is_gone_is_an_error() -> None:
    with answering(iter([]), []) as port:
        pass
    load = drive(port, [b"photo"], clients=2, seconds=0.2)
    assert set(load.errors) == {"ConnectionRefusedError"}
    assert load.per_second == 0


@pytest.mark.slow
def test_a_server_is_started_and_measured(
    bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Threads that wait for each other are slow where something else has a core.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    checkpoint = serving.make_checkpoint(tmp_path / "model.pt")
    command = [sys.executable, "-m", "benchmarks.serving.peers", "one", str(checkpoint)]
    measured = serving.measure(command, bucket=bucket, duration=BRIEF)
    assert measured.keys() == {metric.key for metric in serving.METRICS}
    assert min(measured.values()) > 0
    with pytest.raises(WorkError, match="the server did not start"):
        serving.measure([*command[:-1], str(bucket)], bucket=bucket, duration=BRIEF)


@pytest.mark.slow
def test_a_run_leaves_a_whole_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every contestant, at every number of clients."""
    monkeypatch.setattr(serving, "QUICK", BRIEF)
    assert serving.run(quick=True, output=tmp_path, checkpoint=None) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"serving.json", "serving.md"}
    report = json.loads((tmp_path / "serving.json").read_text())
    assert [entry["role"] for entry in report["contestants"]] == ["ours", "peer", "peer", "peer"]
    for entry in report["contestants"]:
        assert "error" not in entry
        assert entry["metrics"].keys() == report["metrics"].keys()
        assert all(spread["minimum"] > 0 for spread in entry["metrics"].values())


def test_a_checkpoint_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(b"no checkpoint")
    with pytest.raises(UsageError, match="not a checkpoint"):
        serving.run(quick=True, output=tmp_path / "out", checkpoint=tmp_path / "best.pt")
