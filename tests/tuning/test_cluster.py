"""What of a cluster a trial takes, and of one that grows when it is asked."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.ray_nodes import ray_cluster
from tests.tuning.searches import command
from tuning.cluster import trials_at_a_time
from tuning.results import read_trials


@pytest.mark.parametrize(
    ("nodes", "worker", "workers", "trials"),
    [
        ([{"CPU": 2}], {"CPU": 2}, 1, 1),
        ([{"CPU": 1}, {"CPU": 1}], {"CPU": 2}, 1, 0),
        ([{"CPU": 3}, {"CPU": 3}], {"CPU": 2}, 1, 2),
        ([{"CPU": 3}, {"CPU": 3}], {"CPU": 1}, 4, 1),
        ([{"CPU": 8}, {"CPU": 4, "GPU": 1}], {"CPU": 1, "GPU": 0.25}, 1, 4),
        ([{"CPU": 8}, {"CPU": 1, "GPU": 1}], {"CPU": 2, "GPU": 1}, 1, 0),
        ([{"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 1}], {"CPU": 4, "GPU": 1}, 2, 1),
        ([{"CPU": 8, "GPU": 1}], {"CPU": 0.1, "GPU": 0.1}, 1, 10),
    ],
)
def test_a_worker_lies_on_one_node(
    nodes: Sequence[Mapping[str, float]], worker: Mapping[str, float], workers: int, trials: int
) -> None:
    assert trials_at_a_time(nodes, worker, workers) == trials


RESOURCES = """
import sys
from pathlib import Path
from bintally.ray_cluster import connect
from tuning.config import SearchConfig
from tuning.cluster import Resources
connect(sys.argv[1])
resources = Resources.of(SearchConfig(shards="", output=Path(), device="cuda"), heads=False)
print(resources.gpus, resources.room)
"""


@pytest.mark.slow
@pytest.mark.parametrize("adds", [{"CPU": 1, "GPU": 1}, None])
def test_a_cluster_without_workers_is_asked_for_one(adds: Mapping[str, float] | None) -> None:
    """As that of `ray up` is at first; one that nothing adds nodes to is not waited for."""
    with ray_cluster(1, adds=adds) as cluster:
        done = subprocess.run(
            [sys.executable, "-c", RESOURCES, cluster.address],
            cwd=REPOSITORY,
            env=dict(cluster.environment),
            capture_output=True,
            text=True,
            timeout=250,
        )
    if adds is None:
        assert "UsageError: --device cuda: the Ray cluster has no GPU" in done.stderr
    else:
        assert done.stdout == "1.0 1\n", done.stderr
        assert "waiting for the Ray cluster's autoscaler" in done.stderr


@pytest.mark.slow
def test_trials_run_on_a_node_that_comes_later(shards: Path, tmp_path: Path) -> None:
    # Long enough for a node to start meanwhile.
    (tmp_path / "space.toml").write_text("lr = [0.01, 0.02]\nepochs = 300\nbatch_size = 16\n")
    output = tmp_path / "out"
    words = command(shards, output, tmp_path / "space.toml", "--trials", 12, "--repeats", 0)
    with ray_cluster(1) as cluster:
        search = subprocess.Popen(
            [*words, "--ray", cluster.address],
            cwd=REPOSITORY,
            env=dict(cluster.environment),
            stderr=subprocess.PIPE,
            text=True,
        )
        while not read_trials(output) and search.poll() is None:
            time.sleep(0.05)
        cluster.add()
        _, errors = search.communicate(timeout=250)
        assert search.returncode == 0, errors
    trials = read_trials(output)
    assert len(trials) == 12
    assert len({trial.node for trial in trials}) == 2


@pytest.mark.slow
def test_trials_run_on_the_nodes_that_an_autoscaler_adds(
    shards: Path, space: Path, tmp_path: Path
) -> None:
    """With their GPUs, where this machine has any."""
    import torch

    adds: dict[str, float] = {"CPU": 2}
    needs = ["--cpus-per-trial", "2", "--device", "cpu"]
    if torch.cuda.is_available():
        adds, needs = {"CPU": 2, "GPU": 1}, ["--device", "cuda"]
    words = command(shards, tmp_path / "out", space, "--trials", 2, "--repeats", 0, *needs)
    with ray_cluster(1, adds=adds) as cluster:
        done = subprocess.run(
            [*words, "--ray", cluster.address],
            cwd=REPOSITORY,
            env=dict(cluster.environment),
            capture_output=True,
            text=True,
            timeout=250,
        )
    assert done.returncode == 0, done.stderr
    assert "waiting for the Ray cluster's autoscaler" in done.stderr
    assert {trial.status for trial in read_trials(tmp_path / "out")} == {"finished"}
