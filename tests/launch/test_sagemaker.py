"""SageMaker: what its API is asked for (of moto), and the container's commands on its files."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bintally.errors import UsageError
from tests.conftest import REPOSITORY
from tests.launch.fake_slurm import add_program
from tests.ray_nodes import free_port
from training.launch.sagemaker_container import read_job

COMMANDS = REPOSITORY / "docs/launch/container"
ROLE = "arn:aws:iam::123456789012:role/bintally"
HOSTS = ["127.0.0.1", "127.0.0.2"]


def script() -> Any:
    spec = importlib.util.spec_from_file_location(
        "launch_on_sagemaker", REPOSITORY / "docs/launch/sagemaker.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_job_is_asked_for_and_its_model_deployed(s3: str) -> None:
    import boto3

    launch, client = script(), boto3.client("sagemaker")
    launch.train("first", "image:1", ROLE, f"{s3}/shards", f"{s3}/out", {"preset": "finetune"})
    job = client.describe_training_job(TrainingJobName="first")
    assert job["HyperParameters"] == {"preset": "finetune"}
    assert job["CheckpointConfig"]["S3Uri"] == f"{s3}/out/first/checkpoints"
    assert job["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"] == f"{s3}/shards"
    # moto knows old machines alone.
    launch.deploy("first", "image:1", ROLE, instance="ml.c5.xlarge")
    model = client.describe_model(ModelName="first")["PrimaryContainer"]
    assert model == {"Image": "image:1", "ModelDataUrl": job["ModelArtifacts"]["S3ModelArtifacts"]}
    endpoint = client.describe_endpoint(EndpointName="first")
    config = client.describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
    assert config["ProductionVariants"][0]["ModelName"] == "first"


def write_job(base: Path, host: str, shards: Path, **hyperparameters: str) -> None:
    """What SageMaker lays below /opt/ml on a host."""
    config = base / "input/config"
    config.mkdir(parents=True)
    resources = {"current_host": host, "hosts": HOSTS, "network_interface_name": "lo"}
    (config / "resourceconfig.json").write_text(json.dumps(resources))
    (config / "hyperparameters.json").write_text(json.dumps(hyperparameters))
    channel = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"}
    (config / "inputdataconfig.json").write_text(json.dumps({"shards": channel}))
    (base / "input/data").mkdir()
    (base / "input/data/shards").symlink_to(shards)
    for name in ("model", "output/data", "checkpoints"):
        (base / name).mkdir(parents=True)


def test_a_jobs_files_are_torchruns_options_and_the_toolkits_variables(tmp_path: Path) -> None:
    write_job(tmp_path, HOSTS[1], tmp_path, lr="0.01")
    options, variables = read_job({"SAGEMAKER_BASE_DIR": str(tmp_path)})
    assert options == ["--nnodes=2", "--node-rank=1", "--master-addr=127.0.0.1"]
    assert json.loads(variables["SM_HPS"]) == {"lr": "0.01"}
    assert variables["SM_CHANNEL_SHARDS"] == f"{tmp_path}/input/data/shards"
    assert variables["SM_MODEL_DIR"] == f"{tmp_path}/model"
    for name in ("hyperparameters", "inputdataconfig"):
        (tmp_path / f"input/config/{name}.json").unlink()
    _, variables = read_job({"SAGEMAKER_BASE_DIR": str(tmp_path)})
    assert json.loads(variables["SM_HPS"]) == {}
    assert not [name for name in variables if name.startswith("SM_CHANNEL")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, r"resourceconfig\.json: no such file; `train` is for SageMaker"),
        ("{", r"resourceconfig\.json: cannot be read"),
        ('{"hosts": ["a"], "current_host": "b"}', "does not say what this host is"),
        ('["a"]', "does not say what this host is"),
    ],
)
def test_files_that_are_no_jobs_are_a_usage_error(
    text: str | None, told: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "input/config").mkdir(parents=True)
        (tmp_path / "input/config/resourceconfig.json").write_text(text)
    with pytest.raises(UsageError, match=told):
        read_job({"SAGEMAKER_BASE_DIR": str(tmp_path)})


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The image's: its commands before all others, and a Python that has bintally."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, words in {"python": "", "bintally": "-m bintally"}.items():
        add_program(programs, name, f'exec {shlex.quote(sys.executable)} {words} "$@"')
    return {
        **os.environ,
        "PATH": f"{COMMANDS}:{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hosts_train_a_model_and_another_serves_it(
    shards: Path, bucket: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    small = {"backbone": "timm:test_resnet", "weights": "none", "image_size": "64"}
    small |= {"epochs": "1", "batch-size": "16", "stop_on": '["overfit"]'}
    # The hosts' torchruns are told no port: on SageMaker none is taken.
    port = {"PET_MASTER_PORT": str(free_port())}
    bases, jobs = [tmp_path / "algo-1", tmp_path / "algo-2"], []
    for base, host in zip(bases, HOSTS, strict=True):
        write_job(base, host, shards, **small)
        jobs.append(
            subprocess.Popen(
                ["train"],
                env=environment | port | {"SAGEMAKER_BASE_DIR": str(base)},
                cwd=tmp_path,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for job in jobs:
        _, errors = job.communicate(timeout=300)
        assert job.returncode == 0, errors
    assert [path.name for path in (bases[0] / "model").iterdir()] == ["best.pt"]
    assert (bases[0] / "output/data/report.html").is_file()
    assert (bases[0] / "checkpoints/last.pt").is_file()
    assert not list((bases[1] / "model").iterdir()), "the first host has it"

    bind = str(free_port())
    server = subprocess.Popen(
        ["serve", "--replicas", "1"],
        env=environment | {"SAGEMAKER_BASE_DIR": str(bases[0]), "SAGEMAKER_BIND_TO_PORT": bind},
        cwd=tmp_path,
    )
    try:
        until = time.monotonic() + 240
        while ask(bind, "GET", "/ping") != 200:
            assert server.poll() is None
            assert time.monotonic() < until
            time.sleep(0.2)
        photo = (bucket / "bin-images/00001.jpg").read_bytes()
        assert ask(bind, "POST", "/invocations", photo) == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0, "SageMaker kills after 30 s"
    finally:
        server.kill()


def ask(port: str, method: str, path: str, body: bytes | None = None) -> int:
    """The status of the answer; 0 where nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": "image/jpeg"})
        return connection.getresponse().status
    except ConnectionError:
        return 0
    finally:
        connection.close()
