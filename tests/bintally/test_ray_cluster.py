"""Connecting to Ray clusters: those that somebody else has started, and one's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.ray_nodes import ray_cluster


@pytest.mark.slow
def test_a_cluster_that_wants_a_token_says_so(bucket: Path, tmp_path: Path) -> None:
    with ray_cluster(1, token="f" * 64) as cluster:

        def build(**environment: str) -> subprocess.CompletedProcess[str]:
            words = [
                "sharding",
                "build",
                "--source",
                str(bucket),
                "--output",
                str(tmp_path / "out"),
            ]
            return subprocess.run(
                [sys.executable, "-m", *words, "--ray", cluster.address],
                cwd=REPOSITORY,
                env={**os.environ, "HOME": str(tmp_path), **environment},
                capture_output=True,
                text=True,
            )

        result = build()
        assert result.returncode == 2, result.stderr
        assert "one that wants a token is given it with RAY_AUTH_MODE=token" in result.stderr
        assert "Traceback" not in result.stderr
        result = build(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="f" * 64)
        assert result.returncode == 0, result.stderr


def run_alone(code: str) -> str:
    """What a program prints that has no home, and none of the variables that Ray reads."""
    environment = {name: v for name, v in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**environment, "HOME": "/proc/nowhere"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_cluster_of_ones_own_needs_no_home() -> None:
    code = (
        "from bintally.ray_cluster import connect; connect('local'); import ray; print(ray.nodes())"
    )
    assert "'Alive': True" in run_alone(code)


JOBS = """
import os
from bintally.ray_cluster import RayCluster
from bintally.dataset.manifest import Shard
from bintally.storage.opening import open_place
from sharding.integrity import IntegrityJob

cluster = RayCluster("local")
job = IntegrityJob(open_place("."), Shard("no.tar", "no.idx", 0, 0, "", {}))
print(*cluster.run([job]), len(os.environ["RAY_AUTH_TOKEN"]))
"""


@pytest.mark.slow
def test_jobs_on_a_cluster_of_ones_own_are_ours_alone() -> None:
    """Ray hears of a token only before it is imported; else it takes one that lies in the home."""
    assert run_alone(JOBS).split()[-1] == "64"
