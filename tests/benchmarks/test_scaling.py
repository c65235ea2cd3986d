"""What the model of scaling may be relied on for: it agrees with what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scaling import (
    SCENARIOS,
    TOLERANCE,
    Constants,
    Scenario,
    check,
    epoch,
    read_numbers,
    rows,
    sharding,
)
from tests.conftest import Command

ABID = Scenario("ABID", 535_234, 1, 16, 1, 10, 1)


@pytest.fixture(scope="module")
def constants() -> Constants:
    return Constants.of(read_numbers())


def test_it_predicts_what_was_measured_here() -> None:
    checks = check(read_numbers())
    assert len(checks) >= 4
    for one in checks:
        assert abs(one.off) < TOLERANCE, one


def test_requests_bound_abid_and_more_machines_do_not_help(constants: Constants) -> None:
    wide = replace(ABID, cores=96)
    alone = sharding(wide, constants)
    assert alone.bound == "S3 requests"
    # Metadata and photos, one after the other: 97 s each.
    assert alone.seconds > 2 * 535_234 / 5_500
    assert sharding(replace(wide, machines=8), constants) == alone
    assert sharding(replace(wide, partitions=8), constants).seconds < alone.seconds / 2


def test_few_cores_or_a_thin_line_bound_before_s3_does(constants: Constants) -> None:
    assert sharding(replace(ABID, cores=1), constants).bound == "CPU"
    assert sharding(replace(ABID, gbit_per_s=0.5), constants).bound == "network"


def test_a_single_machine_reduces_nothing(constants: Constants) -> None:
    alone = epoch(ABID, constants)
    assert alone.bound == "GPU"
    assert alone.seconds == pytest.approx(535_234 / 2_470)
    together = epoch(replace(ABID, machines=8), constants)
    assert together.bound == "all-reduce"
    assert epoch(replace(ABID, machines=8, gbit_per_s=100), constants).bound == "GPU"


def test_without_a_gpu_the_cores_bound(constants: Constants) -> None:
    laptop = replace(ABID, gpus=0)
    assert epoch(laptop, constants).bound == "CPU (model)"
    assert epoch(replace(laptop, cores=32), constants).seconds == pytest.approx(
        epoch(laptop, constants).seconds / 2
    )


def test_the_table_goes_from_a_laptop_to_a_billion(run: Command) -> None:
    found = rows(read_numbers())
    assert [row["photos"] for row in found] == [scenario.photos for scenario in SCENARIOS]
    assert (found[0]["photos"], found[-1]["photos"]) == (10_000, 1_000_000_000)
    printed = run("benchmarks", "scaling", check=True).stdout
    assert "a billion" in printed
    assert "docs.aws.amazon.com" in printed, "where a constant comes from"
