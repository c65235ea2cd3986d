"""The manifests for KubeRay: of the right form, and what they run runs on a Ray of this machine."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from bintally.counting.checkpoint import read_checkpoint
from tests.conftest import REPOSITORY
from tests.launch.fake_slurm import add_program
from tests.launch.kuberay import RAY_JOB, RAY_SERVICE
from tests.ray_nodes import Cluster, ray_cluster
from tests.tuning.searches import SMALL, SPACE
from tuning.results import read_trials

RAY_JOB_FILE = REPOSITORY / "docs/launch/rayjob.yaml"
RAY_SERVICE_FILE = REPOSITORY / "docs/launch/rayservice.yaml"
SERVE_FILE = REPOSITORY / "serving/cluster.yaml"


def manifest(file: Path) -> Any:
    return yaml.safe_load(file.read_text())


def entrypoints() -> list[list[str]]:
    """The words of the search, and those of the training that a comment names."""
    (comment,) = re.findall(
        r"^ *#   (bintally fit(?:.*\n *#  ? ?.*?)*?--workers \d)$", RAY_JOB_FILE.read_text(), re.M
    )
    return [
        shlex.split(manifest(RAY_JOB_FILE)["spec"]["entrypoint"]),
        shlex.split(re.sub(r"\n *#", " ", comment)),
    ]


def test_a_ray_job_has_the_form_that_kuberay_takes() -> None:
    job = manifest(RAY_JOB_FILE)
    jsonschema.validate(job, RAY_JOB)
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    with pytest.raises(jsonschema.ValidationError, match="0 is not of type 'string'"):
        jsonschema.validate(job, RAY_JOB)


def test_a_ray_service_has_the_form_that_kuberay_takes() -> None:
    jsonschema.validate(manifest(RAY_SERVICE_FILE), RAY_SERVICE)


def test_a_ray_service_deploys_what_serving_does() -> None:
    """What `serve deploy` is given there, and tests/serving deploys."""
    config = yaml.safe_load(manifest(RAY_SERVICE_FILE)["spec"]["serveConfigV2"])
    assert config == yaml.safe_load(SERVE_FILE.read_text())


@pytest.mark.parametrize("file", [RAY_JOB_FILE, RAY_SERVICE_FILE])
def test_ray_is_the_version_of_the_image(file: Path) -> None:
    pins = (REPOSITORY / "constraints.txt").read_text().splitlines()
    spec = manifest(file)["spec"]
    cluster = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    assert f"ray=={cluster['rayVersion']}" in pins


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_a_ray_job_runs_runs_on_ray(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As KubeRay does it: `ray job submit` with the entrypoint. Other places, a small network."""
    add_program(tmp_path, "bintally", f'exec {shlex.quote(sys.executable)} -m bintally "$@"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    (tmp_path / "space.toml").write_text(SPACE)
    places = {"s3://mine/shards": shards, "/shared": tmp_path, "s3://mine": tmp_path / "mirror"}
    search, fit = ([place(word, places) for word in words] for words in entrypoints())
    small = [*SMALL, "--device", "cpu"]
    search += [*small, "--space", str(tmp_path / "space.toml"), "--trials", "2"]
    fit += [*small, "--workers", "2", "--epochs", "1", "--batch-size", "16"]
    with ray_cluster(1, cores=2, dashboard=True) as cluster:
        for words in (search, fit):
            submit(cluster, words)
    assert len(read_trials(tmp_path / "searches/first")) == 2
    assert list((tmp_path / "mirror/searches/first").rglob("last.pt"))
    assert read_checkpoint(tmp_path / "runs/first/last.pt")[0].finished


def submit(cluster: Cluster, words: list[str]) -> None:
    """As KubeRay's submitter does, which waits for the cluster first."""
    command = ["ray.scripts.scripts", "job", "submit", "--address", cluster.dashboard, "--"]
    until = time.monotonic() + 120
    while True:
        done = subprocess.run(
            [sys.executable, "-m", *command, *words],
            env=dict(cluster.environment),
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            return
        assert time.monotonic() < until, done.stdout + done.stderr
        starting = re.search("Failed to connect to Ray|No available agent", done.stderr)
        assert starting, done.stdout + done.stderr


def place(word: str, places: dict[str, Path]) -> str:
    for named, here in places.items():
        if word.startswith(named):
            return str(here) + word.removeprefix(named)
    return word
