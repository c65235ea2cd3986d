"""What a benchmark's numbers may be relied on for: turns, medians, failures, complete files."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from benchmarks.environment import Environment
from benchmarks.measure import Contestant, Measurement, Result, Role, peak_memory_mib, take_turns
from benchmarks.plot import write_plot
from benchmarks.results import Metric, Report, results_folder
from tests.conftest import Command

ENVIRONMENT = Environment(
    cpu="AMD EPYC 9R14 96-Core Processor",
    num_cores=2,
    memory_gib=7.8,
    gpu=None,
    system="Linux 6.1",
    python="3.11.7",
    libraries={"torch": "2.15.0"},
    commit="1234567",
    date="2026-11-22T00:00:00+00:00",
    command="python -m benchmarks trial",
)


# Contestants run in processes of their own, so they are functions of a module.


def note(log: Path, name: str) -> Measurement:
    """Says whose turn it was, and in which process; measures which of its turns it was."""
    with log.open("a") as file:
        file.write(f"{name} {os.getpid()}\n")
    turn = sum(line.startswith(f"{name} ") for line in log.read_text().splitlines())
    return {"value": [100, 3, 1, 8][turn - 1]}


def fail_at_second_turn(log: Path) -> Measurement:
    measured = note(log, "failing")
    if measured["value"] == 3:
        raise ValueError("no good | at all\nand more")
    return measured


def die() -> Measurement:
    os._exit(7)


def hang() -> Measurement:
    time.sleep(600)
    return {}


def memory() -> Measurement:
    return {"value": peak_memory_mib()}


def default_start_method() -> Measurement:
    return {"value": float(multiprocessing.get_start_method() == "spawn")}


def contestant(name: str, run: Callable[[], Measurement], role: Role = "peer") -> Contestant:
    return Contestant(name, run, {"antialiased": True}, role)


def measured(name: str, values: list[float], role: Role = "peer") -> Result:
    rounds = [{"value": value} for value in values]
    return Result(contestant(name, hang, role), list[Mapping[str, float]](rounds))


def report(*results: Result, quick: bool = False) -> Report:
    return Report(
        name="trial",
        title="Trial",
        metrics=[Metric("value", "things/s"), Metric("other", "other, s", 2)],
        workload={"photos": 1500},
        notes=["A note."],
        num_rounds=3,
        quick=quick,
        environment=ENVIRONMENT,
        results=results,
    )


def test_contestants_take_turns_in_processes_of_their_own(tmp_path: Path) -> None:
    log = tmp_path / "log"
    contestants = [contestant(name, partial(note, log, name)) for name in "AB"]
    results = take_turns(contestants, 3, task="trial")
    names, pids = zip(*(line.split() for line in log.read_text().splitlines()), strict=True)
    assert "".join(names) == "ABABABAB"
    assert len({*pids, str(os.getpid())}) == 9
    for result in results:
        # The first turn was the warm-up, and counts for nothing.
        spread = result.spread("value")
        assert spread is not None
        assert (spread.minimum, spread.median, spread.maximum) == (1, 3, 8)


def test_a_failed_contestant_is_an_error_and_the_others_go_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    results = take_turns(
        [
            contestant("failing", partial(fail_at_second_turn, log)),
            contestant("dying", die),
            contestant("sound", partial(note, log, "sound")),
        ],
        2,
        task="trial",
    )
    assert [r.error for r in results] == [
        "ValueError: no good | at all",
        "its process ended with exit code 7",
        None,
    ]
    assert [r.spread("value") is None for r in results] == [True, True, False]
    # After its failure it is not run again: three turns of the sound one, two of the other.
    turns = [line.split()[0] for line in log.read_text().splitlines()]
    assert turns == ["failing", "sound", "failing", "sound", "sound"]
    assert "no good" in capfd.readouterr().err


def test_a_contestant_that_hangs_is_ended() -> None:
    (result,) = take_turns([contestant("hanging", hang)], 1, task="trial", timeout_s=1)
    assert result.error == "no result after 1 s"


def test_memory_is_the_contestants_own() -> None:
    held = b"x" * (300 * 2**20)
    (result,) = take_turns([contestant("small", memory)], 1, task="trial", num_warmups=0)
    spread = result.spread("value")
    assert spread is not None
    assert 1 < spread.median < len(held) / 2**20


def test_a_loader_starts_its_workers_as_it_does_elsewhere() -> None:
    (result,) = take_turns(
        [contestant("workers", default_start_method)], 1, task="trial", num_warmups=0
    )
    assert result.rounds == [{"value": float(sys.platform == "darwin")}]


def test_ratios_are_those_of_the_medians_to_the_first_peer() -> None:
    ours = measured("ours", [4, 8, 6], "ours")
    first, second = measured("first", [2, 1, 30]), measured("second", [1, 1, 1])
    table = report(ours, first, second)
    assert table.ratio(ours) == 3
    assert table.ratio(second) == 0.5
    assert "| **ours** | 6 (4–8) | 3.00 | – |" in table.to_markdown()


def test_a_failed_baseline_leaves_no_ratios() -> None:
    first = Result(contestant("first", hang), error="broken | pipe")
    second = measured("second", [1, 2, 3])
    table = report(first, second)
    assert table.ratio(second) is None
    assert "| first | error: broken \\| pipe | – | – |" in table.to_markdown()
    assert "| second | 2 (1–3) | – | – |" in table.to_markdown()


def test_the_files_are_complete(tmp_path: Path) -> None:
    results = [
        measured("ours", [4, 8, 6], "ours"),
        measured("peer", [2, 2, 2]),
        Result(contestant("broken", hang), error="did not start"),
        measured("limit", [9, 9, 9], "limit"),
    ]
    written = report(*results, quick=True)
    written.write(tmp_path / "new")
    write_plot(written, tmp_path / "new")
    files = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert files.keys() == {"trial.json", "trial.md", "trial.png", "trial.svg"}
    assert files["trial.png"].startswith(b"\x89PNG")
    assert b"<svg" in files["trial.svg"]
    value = json.loads(files["trial.json"])
    assert value["baseline"] == "peer"
    ours, _, broken, _ = value["contestants"]
    assert ours["rounds"] == [{"value": 4}, {"value": 8}, {"value": 6}]
    assert ours["metrics"] == {"value": {"median": 6, "minimum": 4, "maximum": 8}}
    assert ours["settings"] == {"antialiased": True}
    assert broken["error"] == "did not start"
    assert "rounds" not in broken
    assert value["environment"]["hardware"] == "2-core-amd-epyc-9r14"
    page = files["trial.md"].decode()
    for words in ("quick run", "photos: 1,500", "A note.", "antialiased: yes", "torch 2.15.0"):
        assert words in page


@pytest.mark.parametrize(
    ("cpu", "gpu", "slug"),
    [
        ("AMD EPYC", None, "2-core-amd-epyc"),
        ("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", None, "2-core-intel-xeon-e5-2680-v4"),
        ("AMD EPYC", "NVIDIA H100 80GB HBM3", "nvidia-h100"),
    ],
)
def test_results_are_kept_by_hardware(cpu: str, gpu: str | None, slug: str) -> None:
    environment = replace(ENVIRONMENT, cpu=cpu, gpu=gpu)
    assert results_folder(None, environment, quick=False).parts[-3:] == (
        "benchmarks",
        "results",
        slug,
    )
    assert results_folder(None, environment, quick=True).name == f"{slug}-quick"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_loader_delivers_every_photo(run: Command, tmp_path: Path) -> None:
    result = run("benchmarks", "loader", "--quick", "--output", tmp_path / "out")
    assert result.returncode == 0, result.stdout + result.stderr
    value = json.loads((tmp_path / "out/loader.json").read_text())
    # Peers that are installed by chance come beside them.
    names = {"ours, CPU engine", "ours, DALI engine", "ImageFolder", "webdataset", "DALI's reader"}
    assert names | {"CPU limit"} <= {c["name"] for c in value["contestants"]}
    for entry in value["contestants"]:
        assert "error" not in entry
        assert len(entry["rounds"]) == 2
        assert entry["metrics"]["photos_per_s"]["minimum"] > 0
        assert entry["metrics"]["photos_per_s_per_core"]["minimum"] > 0
        assert entry["ratio"] > 0
        fed = entry["metrics"].get("h100s_at_90", {"minimum": 0})["minimum"]
        assert (fed > 0) == (entry["role"] != "limit")
    assert {"loader.json", "loader.md", "loader.png", "loader.svg"} == {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert "ImageFolder" in result.stdout


def test_too_few_photos_are_refused(run: Command, shards: Path, tmp_path: Path) -> None:
    few = tmp_path / "dataset"
    shutil.copytree(shards, few)
    value = json.loads((few / "dataset.json").read_text())
    value["splits"]["train"] = value["splits"]["test"]
    (few / "dataset.json").write_text(json.dumps(value))
    result = run("benchmarks", "loader", "--quick", "--shards", few, "--output", tmp_path / "out")
    assert result.returncode == 2
    assert "more than 128 are needed" in result.stderr
    assert not (tmp_path / "out").exists()


def test_where_time_is_short_a_run_that_would_not_end_is_not_begun(tmp_path: Path) -> None:
    log = tmp_path / "log"
    contestants = [contestant(name, partial(note, log, name)) for name in "AB"]
    results = take_turns(contestants, 3, task="trial", num_warmups=0, seconds=1)
    assert [result.rounds for result in results] == [[], []]
    assert all(result.error is None and result.spread("value") is None for result in results)
    assert not log.exists()
