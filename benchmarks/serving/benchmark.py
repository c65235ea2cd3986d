"""The serving benchmark: `python -m benchmarks serving [--quick]`, see `Serving` in `__main__`."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.environment import REPOSITORY, read_environment
from benchmarks.measure import Contestant, Measurement, family_memory_mib, take_turns
from benchmarks.plot import publish
from benchmarks.results import Metric, Report, results_folder
from benchmarks.serving.load import drive
from bintally.errors import WorkError

__all__ = ["Plan", "make_checkpoint", "measure", "run"]

LIBRARIES = ("torch", "uvicorn", "starlette", "fastapi", "simplejpeg", "pillow")
BACKBONE = "timm:tf_efficientnet_lite0"
CLIENTS = (1, 8, 32)
NUM_PHOTOS = 64
START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Plan:
    """How long is measured."""

    num_rounds: int
    seconds: float
    """For each number of clients."""
    warm_up_s: float
    """Before it."""


FULL = Plan(num_rounds=3, seconds=5.0, warm_up_s=1.5)
QUICK = Plan(num_rounds=2, seconds=3.0, warm_up_s=2.0)
METRICS = (
    Metric("per_s_32", "photos/s, 32 clients"),
    *(Metric(f"p{percent}_ms_32", f"p{percent}, ms, 32 clients") for percent in (50, 95, 99)),
    *(
        metric
        for clients in (1, 8)
        for metric in (
            Metric(f"per_s_{clients}", f"photos/s, {clients}"),
            Metric(f"p50_ms_{clients}", f"p50, ms, {clients}"),
            Metric(f"p95_ms_{clients}", f"p95, ms, {clients}"),
            Metric(f"p99_ms_{clients}", f"p99, ms, {clients}"),
        )
    ),
    Metric("memory_mib", "memory, MiB"),
)
NOTES = (
    "photos/s: answers with status 200 a second, each client sending a photo when the one before "
    "is answered. Any other answer, or none, makes an error of the row.",
    "The clients are one process on the same machine, and share its cores with the server.",
    "memory: PSS of the server's processes after the load of 32 clients.",
    "FastAPI in bf16 shows what of the difference is the arithmetic, and what the serving.",
)


def run(*, quick: bool, output: Path | None, checkpoint: Path | None) -> int:
    """Measures and writes the results; 1 where a server failed."""
    from bintally.counting.checkpoint import read_checkpoint

    environment = read_environment(LIBRARIES)
    folder = results_folder(output, environment, quick)
    duration = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(prefix="bintally-serving-") as temporary:
        scratch = Path(temporary)
        _render(scratch / "bucket")
        file = checkpoint.absolute() if checkpoint else make_checkpoint(scratch / "model.pt")
        backbone = read_checkpoint(file)[0].config["backbone"]
        peer = [sys.executable, "-m", "benchmarks.serving.peers"]
        ours = [sys.executable, "-m", "serving", "--checkpoint", str(file), "--port", "0"]
        answers = partial(measure, bucket=scratch / "bucket", duration=duration)
        cores = os.cpu_count() or 1
        contestants = [
            Contestant(
                "bintally", partial(answers, ours), {"command": "python -m serving"}, "ours"
            ),
            Contestant(
                "FastAPI + torch",
                partial(answers, [*peer, "one", str(file)]),
                {"workers": 1, "precision": "fp32", "at_a_time": 1},
            ),
            Contestant(
                "FastAPI + torch, bf16",
                partial(answers, [*peer, "one-bf16", str(file)]),
                {"workers": 1, "precision": "bf16", "at_a_time": 1},
            ),
            Contestant(
                "the original's handler",
                partial(answers, [*peer, "handler", str(file)]),
                {
                    "workers": cores,
                    "precision": "fp32",
                    "preprocessing": "Resize(224), unnormalised",
                },
            ),
        ]
        results = take_turns(contestants, duration.num_rounds, task="serving", num_warmups=0)
    report = Report(
        name="serving",
        title="Counts over HTTP: photos from clients, one at a time each",
        metrics=METRICS,
        workload={
            "model": f"{backbone}, {checkpoint.name if checkpoint else 'random weights'}",
            "photos": f"{NUM_PHOTOS} rendered ones of ABID's size",
            "seconds": f"{duration.seconds:g} for each number of clients, after "
            f"{duration.warm_up_s:g} of warm-up",
        },
        notes=NOTES,
        num_rounds=duration.num_rounds,
        quick=quick,
        environment=environment,
        results=results,
    )
    return publish(report, folder)


def _render(folder: Path) -> None:
    from bintally.storage.opening import open_place
    from synthetic.synthesize import synthesize

    synthesize(open_place(folder), images=NUM_PHOTOS + 20, seed=0)


def make_checkpoint(file: Path) -> Path:
    """A model of fresh weights: how fast it computes does not depend on them."""
    import torch

    from bintally.counting.checkpoint import Checkpoint, write_checkpoint
    from bintally.counting.model import build_model

    torch.manual_seed(0)
    model, preprocessing = build_model(
        BACKBONE, "none", image_size=224, head_width=128, num_classes=6, trainable="head"
    )
    write_checkpoint(
        file,
        Checkpoint(
            model=model.state_dict(),
            optimizer={},
            schedule={},
            ema=None,
            scaler=None,
            random={},
            epoch=0,
            step=0,
            sums={},
            best={},
            config={"backbone": BACKBONE, "head_width": 128, "trainable": "head"},
            dataset="",
            classes=[*range(6)],
            preprocessing=preprocessing.to_dict(),
        ),
    )
    return file


def measure(command: Sequence[str], *, bucket: Path, duration: Plan) -> Measurement:
    """Starts a server and drives it with every number of clients. Raises `WorkError` where it does
    not start, or does not answer every request with 200."""
    photos = _good_photos(bucket)
    measured: dict[str, float] = {}
    with _server(command) as (port, process):
        for clients in CLIENTS:
            drive(port, photos, clients, duration.warm_up_s)
            load = drive(port, photos, clients, duration.seconds)
            if load.errors:
                raise WorkError(
                    f"{len(load.errors)} requests of {clients} clients failed: {load.errors[0]}"
                )
            measured[f"per_s_{clients}"] = load.per_second
            for percent in (50, 95, 99):
                measured[f"p{percent}_ms_{clients}"] = load.percentile_ms(percent)
        measured["memory_mib"] = family_memory_mib(process)
    return measured


def _good_photos(bucket: Path) -> list[bytes]:
    from bintally.dataset.photo import BadPhoto, check_photo

    photos = []
    for path in sorted((bucket / "bin-images").iterdir()):
        with contextlib.suppress(BadPhoto):
            check_photo(path.read_bytes())
            photos.append(path.read_bytes())
    return photos[:NUM_PHOTOS]


@contextlib.contextmanager
def _server(command: Sequence[str]) -> Iterator[tuple[int, int]]:
    """A server in a session of its own; its port and process id, once it is ready."""
    with tempfile.TemporaryFile() as log:
        if "serving" in command:
            port = 0
        else:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            command = [*command, str(port)]
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True
        )
        try:
            until = time.monotonic() + START_TIMEOUT_S
            while True:
                log.seek(0)
                text = log.read().decode(errors="replace")
                if port == 0 and (
                    found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", text)
                ):
                    port = int(found[1])
                with contextlib.suppress(OSError):
                    if port:
                        urllib.request.urlopen(f"http://127.0.0.1:{port}/ping").close()
                        break
                if process.poll() is not None or time.monotonic() > until:
                    raise WorkError(f"the server did not start: {text[-300:]}")
                time.sleep(0.2)
            yield port, process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(40)
            # uvicorn's workers outlive a parent that did not end in time.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
