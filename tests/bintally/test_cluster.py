"""Connecting to Ray clusters that somebody else has started."""

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
