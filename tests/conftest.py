"""What the tests share: a rendered bucket, a local S3 server, shards, and the real photos."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bintally.storage.opening import open_place
from bintally.storage.place import Place

# As every command does, before PyTorch is there: tests are each other's busy neighbours.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

REPOSITORY = Path(__file__).parent.parent
SEED = 7

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Metadata is kept in a folder of the tests' own, not in the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BINTALLY_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def abid() -> Path:
    """The real photos, which no clone holds; the tests that want them are skipped without."""
    path = Path(os.environ.get("BINTALLY_ABID", REPOSITORY.parent / "shared/abid"))
    if not path.is_dir():
        pytest.skip("real ABID photos are not here (BINTALLY_ABID names their folder)")
    return path


@pytest.fixture(scope="session")
def weights(abid: Path) -> Path:
    """ImageNet weights that load offline."""
    path = abid.parent / "weights/tf_efficientnet_lite0_timm.safetensors"
    if not path.is_file():
        pytest.skip("no ImageNet weights here")
    return path


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered bucket in a folder: 150 good photos in the padded series, and faults."""
    from synthetic.synthesize import synthesize

    folder = tmp_path_factory.mktemp("bucket")
    synthesize(open_place(folder), images=150, seed=SEED)
    return folder


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A local S3 server in a process of its own."""
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "--port", "0"], stdout=file, stderr=file
        )
    try:
        endpoint = ""
        for _ in range(300):
            lines = [w for w in log.read_text().split() if w.startswith("http://127.0.0.1:")]
            if lines:
                endpoint = lines[0]
                urllib.request.urlopen(endpoint).close()
                break
            time.sleep(0.1)
        assert endpoint, log.read_text()
        yield endpoint
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new S3 bucket, `s3://NAME`, that this process and its children may use."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    name = f"bintally-{uuid.uuid4()}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def bucket_on_s3(bucket: Path, s3: str) -> str:
    """The rendered bucket on S3."""
    copy(open_place(bucket), open_place(f"{s3}/abid"))
    return f"{s3}/abid"


def copy(source: Place, destination: Place) -> None:
    """Copies every object."""
    for entry in source.entries():
        destination.put(entry.path, source.get(entry.path))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="session")
def run() -> Command:
    """Runs one of our commands in a process of its own: `run("sharding", "build", …)`."""

    def command(
        package: str, *arguments: object, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [sys.executable, "-m", package, *map(str, arguments)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        if check:
            assert result.returncode == 0, result.stdout + result.stderr
        return result

    return command


@pytest.fixture(scope="session")
def shards(bucket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of the rendered bucket: six classes, several shards a split, odd sizes."""
    from sharding.build import build
    from sharding.distribute import Processes
    from sharding.planning.options import Options

    folder = tmp_path_factory.mktemp("shards") / "dataset"
    options = Options(shard_samples=30)
    build(open_place(bucket), open_place(folder), options, distributor=Processes(1), connections=8)
    return folder


@pytest.fixture(scope="session")
def small_shards(bucket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of many shards."""
    from sharding.build import build
    from sharding.distribute import Processes
    from sharding.planning.options import Options

    folder = tmp_path_factory.mktemp("small") / "dataset"
    build(
        open_place(bucket),
        open_place(folder),
        Options(shard_samples=6),
        distributor=Processes(1),
        connections=8,
    )
    return folder


@pytest.fixture
def shards_on_s3(small_shards: Path, s3: str) -> str:
    copy(open_place(small_shards), open_place(f"{s3}/shards"))
    return f"{s3}/shards"
