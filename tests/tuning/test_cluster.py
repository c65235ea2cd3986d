"""What of a cluster a trial takes, and of one that grows when it is asked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence

import pytest

from tests.conftest import REPOSITORY
from tests.ray_nodes import ray_cluster
from tuning.cluster import trials_at_a_time


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
print(resources.gpus, resources.concurrency)
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
