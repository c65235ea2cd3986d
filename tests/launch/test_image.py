"""The Dockerfile and the compose file, read: nothing here builds or starts them.

What compose runs for the demo runs on a local S3 server.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.launch.fake_slurm import add_program

CODE = "/opt/bintally"
"""Where the project lies in the image."""


def instructions() -> list[tuple[str, str]]:
    """What the Dockerfile says, each with its words in one line."""
    text = re.sub(r"^\s*#.*\n", "", (REPOSITORY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def said(name: str) -> list[str]:
    return [words for instruction, words in instructions() if instruction == name]


def test_the_image_runs_as_nobody_in_particular() -> None:
    assert said("USER") == ["${USER}"]
    assert said("ARG") == ["USER=bintally"]
    assert "useradd --create-home --uid 1000 bintally" in said("RUN")[0]


def test_the_image_is_of_pinned_versions_and_holds_no_secret() -> None:
    (base,) = said("FROM")
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", base)
    installs = [words for words in said("RUN") if "pip install" in words]
    assert all("-c constraints.txt" in words or "--no-deps" in words for words in installs)
    assert not re.search(r"(?i)token|secret|password|key", " ".join(said("ENV") + said("ARG")))
    assert len(said("HEALTHCHECK")) == 1


def test_what_the_image_is_made_of_is_here_and_nothing_else_is_sent() -> None:
    for words in said("COPY"):
        for source in words.split()[:-1]:
            assert (REPOSITORY / source).exists(), source
    first, *rules = (
        line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line[0] != "#"
    )
    assert first == "*"
    sent = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert all((REPOSITORY / path).exists() for path in sent)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.removesuffix("*") for name in packages} <= sent
    copied = {source for words in said("COPY") for source in words.split()[:-1]} - {"."}
    assert copied <= sent


def test_the_requirements_are_the_projects() -> None:
    (program,) = re.findall(r'python -c "(.*?)" > requirements.txt', " ".join(said("RUN")))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert done.stdout.splitlines() == project["project"]["dependencies"]


def test_sagemakers_commands_come_before_rays() -> None:
    (path,) = re.findall(r"PATH=([^:]+):\$PATH", said("ENV")[0])
    folder = REPOSITORY / Path(path).relative_to(CODE)
    for command in ("train", "serve"):
        assert os.access(folder / command, os.X_OK), command
    assert json.loads(said("CMD")[0]) == ["serve"]


COMPOSE = REPOSITORY / "docs/launch/compose.yaml"


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load(COMPOSE.read_text())


def test_the_compose_file_is_whole(compose: Any) -> None:
    services = compose["services"]
    assert compose.keys() <= {"name", "services", "volumes", "x-s3", "x-bintally"}
    known = {"image", "build", "command", "environment", "volumes", "depends_on", "healthcheck"}
    for name, service in services.items():
        assert service.keys() <= known | {"ports", "shm_size"}, name
        for volume in service["volumes"]:
            assert volume.split(":")[0] in compose["volumes"]
        for other, when in service.get("depends_on", {}).items():
            assert when["condition"] in ("service_healthy", "service_completed_successfully")
            assert other in services
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), "for this machine alone"
        if "build" in service:
            assert (COMPOSE.parent / service["build"] / "Dockerfile").is_file()
        else:
            assert re.fullmatch(r"[\w/]+:[\d.]+", service["image"]), "a version, not the latest"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_compose_runs_runs_on_s3(compose: Any, s3: str, tmp_path: Path) -> None:
    """Twice, as `up` does: the second time all is there."""
    import boto3

    services = compose["services"]
    add_program(tmp_path, "bintally", f'exec {shlex.quote(sys.executable)} -m bintally "$@"')
    boto3.client("s3").create_bucket(Bucket=services["s3"]["environment"]["S3_BUCKET"])
    *shell, commands = services["demo"]["command"]
    small = commands.replace(
        "--output s3://bin-photos/bucket", "--output s3://bin-photos/bucket --images 60"
    )
    small = small.replace("--epochs 12", "--epochs 1").replace("--batch-size 32", "--batch-size 8")
    assert small != commands
    environment = os.environ | services["demo"]["environment"]
    environment |= {"AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"]}
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    for _ in range(2):
        done = subprocess.run(
            [*shell, small], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    serve = shlex.split(services["serve"]["command"])
    assert (tmp_path / serve[serve.index("--checkpoint") + 1]).is_file()
