"""Each rule speaks up on a run made to trip it, and all are silent on a healthy one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.training.runs import settings
from training.debugger.recorder import EVERY, MachineSampler, Recorder
from training.debugger.rules import RULES, Records, apply_rules
from training.fit import fit

COUNTS = {"0": 89, "1": 364, "2": 689, "3": 826, "4": 727, "5": 558}


def line(epoch: int, train: float, validation: float, wait: float = 0.01) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "train": {"loss": train},
        "validation": {"loss": validation},
        "data_wait_share": wait,
    }


def healthy() -> Records:
    """Thirty epochs on a GPU that keeps busy, the losses falling together."""
    # Falls with a little noise, the same every time.
    losses = [1.8 - 0.3 * math.log10(1 + step / 20) + 0.05 * math.sin(step) for step in range(750)]
    return Records(
        history=[line(e, 1.8 - 0.03 * e, 1.82 - 0.029 * e) for e in range(1, 31)],
        losses=losses,
        step_seconds=[1.0 + 0.05 * math.sin(7 * step) for step in range(750)],
        gradients=[{"head.0.weight": 1e-3, "head.2.bias": 4e-3} for _ in range(30)],
        activity={"head.1": [0.2 + 0.005 * channel for channel in range(128)]},
        class_counts=COUNTS,
        confusion=[[5 if row == column else 4 for column in range(6)] for row in range(6)],
        cpu=[60.0] * 700,
        memory_bytes=[2**30] * 700,
        gpu=[85.0 + index % 10 for index in range(700)],
        gpu_memory=[62.0] * 700,
        initialisation_s=14.0,
    )


def test_all_rules_are_silent_on_a_healthy_run() -> None:
    findings = apply_rules(healthy())
    assert [finding.rule for finding in findings] == [*RULES]
    assert [f.rule for f in findings if f.found] == []
    assert all(f.evidence and not f.remedy for f in findings)
    assert all(f.status == "NoIssuesFound" for f in findings)


def overfit(records: Records) -> None:
    records.history[-1] = line(30, 0.8, 1.6)


def overtraining(records: Records) -> None:
    records.history = [line(e, 1.6 - 0.01 * e, 1.5) for e in range(1, 13)]


def loss_not_decreasing(records: Records) -> None:
    records.losses = [1.79 + 0.05 * math.sin(step) for step in range(750)]


def loss_not_a_number(records: Records) -> None:
    records.losses[-1] = float("nan")


def vanishing_gradient(records: Records) -> None:
    records.gradients = [{"stem.weight": 1e-9, "head.0.weight": 1e-3}] * 6


def exploding_gradient(records: Records) -> None:
    records.gradients[20] = {"head.0.weight": 2.0}


def infinite_gradient(records: Records) -> None:
    records.gradients[20] = {"head.0.weight": float("nan")}


def dead_relu(records: Records) -> None:
    records.activity = {"head.1": [0.0] * 70 + [0.5] * 58}


def class_imbalance(records: Records) -> None:
    records.class_counts = COUNTS | {"0": 12}
    records.confusion = [[1, 9, 0, 0, 0, 0], *records.confusion[1:]]


def low_gpu_utilisation(records: Records) -> None:
    records.gpu = [40.0] * 700


def data_loader(records: Records) -> None:
    records.history = [line(e, 1.8, 1.8, wait=0.4) for e in range(1, 4)]


def cpu_bottleneck(records: Records) -> None:
    records.cpu, records.gpu = [99.0] * 700, [5.0] * 400 + [80.0] * 300


def gpu_memory_growth(records: Records) -> None:
    records.gpu_memory = [50 + index / 50 for index in range(700)]


def step_outlier(records: Records) -> None:
    for step in range(0, 750, 50):
        records.step_seconds[step] = 9.0


def long_initialisation(records: Records) -> None:
    records.initialisation_s = 1300.0


TRIPS: list[tuple[str, Callable[[Records], None]]] = [
    ("overfit", overfit),
    ("overtraining", overtraining),
    ("loss-not-decreasing", loss_not_decreasing),
    ("loss-not-decreasing", loss_not_a_number),
    ("vanishing-gradient", vanishing_gradient),
    ("exploding-gradient", exploding_gradient),
    ("exploding-gradient", infinite_gradient),
    ("dead-relu", dead_relu),
    ("class-imbalance", class_imbalance),
    ("low-gpu-utilisation", low_gpu_utilisation),
    ("data-loader", data_loader),
    ("cpu-bottleneck", cpu_bottleneck),
    ("gpu-memory-growth", gpu_memory_growth),
    ("step-outlier", step_outlier),
    ("long-initialisation", long_initialisation),
]


def test_every_rule_has_a_run_that_trips_it() -> None:
    assert {rule for rule, _ in TRIPS} == {*RULES}


@pytest.mark.parametrize(("rule", "trip"), TRIPS)
def test_a_rule_finds_what_it_is_for(rule: str, trip: Callable[[Records], None]) -> None:
    records = healthy()
    trip(records)
    findings = {finding.rule: finding for finding in apply_rules(records)}
    assert findings[rule].status == "IssuesFound"
    assert findings[rule].remedy
    assert findings[rule].to_dict()["thresholds"]
    # A GPU that waits for the CPU is idle, too.
    also = {"low-gpu-utilisation"} if rule == "cpu-bottleneck" else set()
    assert {name for name, finding in findings.items() if finding.found} == {rule} | also


def test_rules_have_something_to_say_of_a_run_that_has_only_begun() -> None:
    assert not any(finding.found for finding in apply_rules(Records()))


def rules_of(run: Path) -> dict[str, dict[str, Any]]:
    return {finding["rule"]: finding for finding in json.loads((run / "rules.json").read_text())}


def test_a_run_writes_what_its_rules_found_and_shows_it(shards: Path, tmp_path: Path) -> None:
    fit(settings(shards, tmp_path, trainable="head", epochs=6, lr=1e-12))
    rules = rules_of(tmp_path)
    assert [*rules] == [*RULES]
    assert rules["loss-not-decreasing"]["status"] == "IssuesFound"
    assert "mean loss of the first 10 steps" in rules["loss-not-decreasing"]["evidence"]
    assert rules["vanishing-gradient"]["status"] == "NoIssuesFound"
    assert rules["dead-relu"]["evidence"].endswith("less than 1% of the time")
    page = (tmp_path / "report.html").read_text()
    assert "What the rules say" in page
    assert "another --lr" in page


CLOCKED = {"data-loader", "step-outlier"}
"""Rules about the machine's pace, which other work on it decides, too."""


@pytest.mark.slow
def test_a_run_that_learns_its_photos_by_heart_overfits_and_overtrains(
    shards: Path, tmp_path: Path
) -> None:
    fit(settings(shards, tmp_path, epochs=20, lr=0.01))
    found = {name for name, f in rules_of(tmp_path).items() if f["status"] == "IssuesFound"}
    assert found - CLOCKED >= {"overfit", "overtraining"}


def test_a_healthy_run_is_told_nothing(shards: Path, tmp_path: Path) -> None:
    fit(settings(shards, tmp_path, trainable="head", epochs=6))
    rules = rules_of(tmp_path)
    found = {name for name, f in rules.items() if f["status"] == "IssuesFound"}
    assert found - CLOCKED == set()
    assert "of the first 10 steps" in rules["loss-not-decreasing"]["evidence"]


def test_a_run_ends_on_the_rule_that_it_was_told_to_stop_on(shards: Path, tmp_path: Path) -> None:
    config = settings(
        shards, tmp_path, trainable="head", epochs=50, lr=1e-12, stop_on=("loss-not-decreasing",)
    )
    fitted = fit(config)
    assert fitted.stopped == "the rule loss-not-decreasing found an issue"
    assert len(fitted.history) == 5, "twenty steps at four an epoch"


def test_a_dead_layer_and_its_gradients_are_recorded() -> None:
    torch.manual_seed(0)
    dead = torch.nn.Linear(4, 8)
    torch.nn.init.constant_(dead.bias, -100)
    model = torch.nn.Sequential(dead, torch.nn.ReLU(), torch.nn.Linear(8, 2))
    records = Records()
    recorder = Recorder(model, records, 0)
    for number in range(EVERY + 1):
        recorder.before_step(number)
        model(torch.randn(16, 4)).sum().backward()
        recorder.after_backward(model)
    recorder.collect()
    recorder.close()
    assert records.activity == {"1": [0.0] * 8}
    assert [*records.gradients[0]] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert len(records.gradients) == 2
    findings = {finding.rule: finding for finding in apply_rules(records)}
    assert findings["dead-relu"].found
    assert findings["vanishing-gradient"].found


def test_the_machine_is_sampled() -> None:
    records = Records()
    sampler = MachineSampler(records, torch.device("cpu"))
    sum(number * number for number in range(300_000))
    sampler.sample()
    assert 0 <= records.cpu[0] <= 100
    assert records.memory_bytes[0] > 2**20
    assert records.gpu == []


def test_a_gpu_that_tells_nothing_of_itself_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a container without NVML, or on a slice of a GPU: `NVMLError` is no RuntimeError."""
    asked = []

    class NVMLError(Exception):
        pass

    def utilization(device: torch.device) -> int:
        asked.append(device)
        raise NVMLError

    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 2**30)
    whole = SimpleNamespace(total_memory=2**32)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: whole)
    records = Records()
    sampler = MachineSampler(records, torch.device("cuda", 0))
    sampler.sample()
    assert records.gpu_memory == [], "what comes before the first step is initialisation"
    records.step_seconds.append(1.0)
    for _ in range(3):
        sampler.sample()
    assert len(asked) == 1
    assert records.gpu == []
    assert records.gpu_memory == [25.0] * 3
    assert len(records.cpu) == 4


@pytest.mark.slow
def test_a_profile_is_a_trace_of_a_few_steps(shards: Path, tmp_path: Path) -> None:
    fit(settings(shards, tmp_path, epochs=2, profile=True))
    trace = json.loads((tmp_path / "trace.json").read_text())
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert any(name.startswith("aten::") for name in names)
    assert any(name.startswith("ProfilerStep#") for name in names)
    assert any("conv" in name for name in names), "the network's own kernels"
