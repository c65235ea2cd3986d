"""The main job end to end, on a laptop: `make demo`.

Runs the commands that a user would run, each in a process of its own and shown before it runs:
a bucket of rendered bins on a local S3 server, shards from it, a small network trained from
scratch, the test split evaluated, a photo counted, and heads for that network searched on a Ray
cluster of this machine alone. What it makes lies in demo-output/.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OUTPUT = Path("demo-output")
BUCKET = "bin-photos"

FIT = (
    """--backbone resnet18 --weights none --image-size 96 --epochs 12 --batch-size 32 --lr 0.001"""
)

SEARCH = "--backbone resnet18 --image-size 96 --trials 8"


def main() -> int:
    began = time.monotonic()
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    shards, run = OUTPUT / "shards", OUTPUT / "run"
    with s3_server() as endpoint:
        # A local server checks no signature, but a client wants something to sign with.
        os.environ |= {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "demo",
            "AWS_SECRET_ACCESS_KEY": "demo",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        make_bucket()
        step("A bucket of rendered bin photos", f"synthesize --output s3://{BUCKET}")
        step("Shards", f"build --source s3://{BUCKET} --output {shards}")
    step("Every byte is as it was written", f"verify {shards} --decode")
    step("A model, from scratch", f"fit --shards {shards} --run {run} {FIT}")
    step("The test split", f"evaluate --checkpoint {run}/best.pt --shards {shards}")
    photo = a_test_photo(shards)
    step("One photo", f"predict --checkpoint {run}/best.pt {photo}")
    heads = f"--shards {shards} --output {OUTPUT}/search --weights {run}/best.pt {SEARCH}"
    step("Other heads for the same network", f"search {heads}")

    test = run / "evaluation-test"
    result = json.loads((test / "evaluation.json").read_text())
    print(
        f"\nCounted right: {result['accuracy']:.1%} of {result['samples']} test photos; always "
        f"answering {result['baseline']['count']} gets {result['baseline']['accuracy']:.1%}. "
        f"Took {time.monotonic() - began:.0f} s.\n"
        f"Curves, confusion matrix and photos with answers: {(test / 'report.html').resolve()}\n"
        f"The search: {(OUTPUT / 'search/report.html').resolve()}"
    )
    return 0


def step(title: str, command: str) -> None:
    """Shows a command and runs it; ends the demo where it fails."""
    print(f"\n== {title}\n$ bintally {command}", flush=True)
    status = subprocess.run([sys.executable, "-m", "bintally", *shlex.split(command)]).returncode
    if status:
        sys.exit(f"the demo ends here: this command failed with exit code {status}")


@contextmanager
def s3_server() -> Iterator[str]:
    """A local S3 server in a process of its own, for the time of the context; its endpoint."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    with (OUTPUT / "s3-server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "--port", str(port)], stdout=log, stderr=log
        )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(endpoint, timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            sys.exit(f"the local S3 server did not start; see {OUTPUT / 's3-server.log'}")
        yield endpoint
    finally:
        server.terminate()
        server.wait()


def make_bucket() -> None:
    import boto3

    boto3.client("s3").create_bucket(Bucket=BUCKET)


def a_test_photo(shards: Path) -> Path:
    """A photo of the test split, taken out of its shard with plain tar."""
    tar = next((shards / "test").glob("*.tar"))
    names = subprocess.run(["tar", "-tf", tar], capture_output=True, text=True, check=True)
    name = names.stdout.splitlines()[0]
    subprocess.run(["tar", "-xf", tar.resolve(), name], cwd=OUTPUT, check=True)
    return OUTPUT / name


if __name__ == "__main__":
    sys.exit(main())
