"""What of a cluster a trial takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from tuning.room import trials_at_a_time


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
