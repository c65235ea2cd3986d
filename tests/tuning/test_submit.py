"""Jobs on a cluster: the same command, followed, with its exit code, or stopped."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bintally.errors import UsageError
from tests.conftest import REPOSITORY
from tests.ray_nodes import ray_cluster
from tests.tuning.searches import SMALL, SPACE
from tuning.results import read_trials
from tuning.submit import pack, stop


def test_a_job_gets_the_code_and_nothing_private(tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text(SPACE)
    pack(tmp_path / "job", [tmp_path / "space.toml"])
    sent = {str(path.relative_to(tmp_path / "job")) for path in (tmp_path / "job").rglob("*")}
    assert {
        "space.toml",
        "tuning/search.py",
        "tuning/report/report.html.j2",
        "training/fit.py",
    } <= sent
    result = subprocess.run(
        [sys.executable, "-m", "tuning", "search", "--help"],
        cwd=tmp_path / "job",
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
    )
    assert result.returncode == 0, "it is whole"
    tops = {path.name for path in (tmp_path / "job").iterdir()}
    assert tops == {"bintally", "sharding", "training", "tuning", "space.toml"}


@pytest.mark.slow
def test_a_cluster_runs_the_same_command(shards: Path, tmp_path: Path) -> None:
    """Through ours and through Ray's own client; a job's exit code comes back; one is stopped."""
    (tmp_path / "space.toml").write_text(SPACE)
    with ray_cluster(1, cores=2, dashboard=True) as cluster:

        def call(*words: object) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", *map(str, words)],
                cwd=REPOSITORY,
                env=dict(cluster.environment),
                capture_output=True,
                text=True,
            )

        search = ["search", "--shards", shards, *SMALL, "--trials", 2, "--space", "space.toml"]
        ours = call(
            *("tuning", "submit", "--address", cluster.dashboard),
            *("--file", tmp_path / "space.toml", "--", *search, "--output", tmp_path / "ours"),
        )
        assert ours.returncode == 0, ours.stdout + ours.stderr
        assert "best: trial" in ours.stdout
        assert len(read_trials(tmp_path / "ours")) == 2
        wrong = call(
            *("tuning", "submit", "--address", cluster.dashboard, "--", "search"),
            *("--shards", tmp_path / "nothing", "--output", tmp_path / "wrong"),
        )
        assert wrong.returncode == 2, wrong.stdout + wrong.stderr
        assert "error:" in wrong.stdout
        pack(tmp_path / "job", [tmp_path / "space.toml"])
        theirs = call(
            *("ray.scripts.scripts", "job", "submit", "--address", cluster.dashboard),
            *("--working-dir", tmp_path / "job", "--", "python", "-m", "tuning", *search),
            *("--output", tmp_path / "theirs"),
        )
        assert theirs.returncode == 0, theirs.stdout + theirs.stderr
        assert len(read_trials(tmp_path / "theirs")) == 2

        long = subprocess.Popen(
            [
                *(sys.executable, "-m", "tuning", "submit", "--address", cluster.dashboard, "--"),
                *map(str, search[:-4]),
                *("--trials", "500", "--output", str(tmp_path / "long")),
            ],
            cwd=REPOSITORY,
            env=dict(cluster.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert long.stdout is not None
        found = re.match(r"job (\S+):", long.stdout.readline())
        assert found is not None
        stopped = call("tuning", "submit", "--address", cluster.dashboard, "--stop", found[1])
        assert stopped.returncode == 0, stopped.stderr
        _, errors = long.communicate(timeout=60)
        assert long.returncode == 1
        assert f"job {found[1]}: was stopped" in errors
        again = call("tuning", "submit", "--address", cluster.dashboard, "--stop", found[1])
        assert again.returncode == 2
        assert "is over already (stopped)" in again.stderr


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:9", "no dashboard of a Ray cluster answers there"),
        ("http://127.0.0.1:9/", "no dashboard of a Ray cluster answers there"),
        ("https://127.0.0.1:9", "no dashboard of a Ray cluster answers there"),
        ("http://127.0.0.1:none", "no dashboard of a Ray cluster answers there"),
        ("ray://127.0.0.1:10001", "sent to the cluster's dashboard, http://HEAD:8265"),
    ],
)
def test_an_address_where_no_dashboard_is_is_a_usage_error(address: str, told: str) -> None:
    with pytest.raises(UsageError, match=f"--address {address}: .*{told}"):
        stop(address, "a-job")
