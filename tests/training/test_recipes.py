"""Recipes: what each setting does to the loss, the steps and the weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from bintally.counting.checkpoint import checkpoint_bytes, read_checkpoint
from bintally.counting.model import CountNet, build_model
from bintally.errors import UsageError
from tests.conftest import Command
from tests.training.runs import same_tensors, settings
from tests.training.survival.test_survival import be_terminated
from training.config import FitConfig, MetricName
from training.fit import fit
from training.heads import HeadTraining, read_head_data
from training.losses import class_weights, make_loss, targets
from training.optimization import Average, make_optimizer
from training.presets import PRESETS, preset, with_preset

CPU = torch.device("cpu")
PLAIN = FitConfig("", Path())


def test_plain_loss_is_cross_entropy() -> None:
    logits, labels = torch.randn(9, 6), torch.arange(9) % 6
    loss = make_loss(PLAIN, range(6), {}, CPU)(logits, labels)
    torch.testing.assert_close(loss, functional.cross_entropy(logits, labels, reduction="sum"))
    smoothed = make_loss(replace(PLAIN, label_smoothing=0.1), range(6), {}, CPU)(logits, labels)
    expected = functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(smoothed, expected)


def test_ordinal_targets_ask_most_for_the_label_and_more_for_what_is_nearer() -> None:
    rows = targets(replace(PLAIN, loss="ordinal"), [0, 1, 2, 3, 7])
    torch.testing.assert_close(rows.sum(1), torch.ones(5))
    assert rows.argmax(1).tolist() == [0, 1, 2, 3, 4]
    assert rows[1, 2] == rows[1, 0] > rows[1, 3] > rows[1, 4]
    assert rows[3, 2] > rows[3, 4], "7 is four items away from 3"


def test_balanced_classes_matter_alike_and_the_mean_weight_is_one() -> None:
    counts = {"0": 10, "1": 0, "2": 30}
    weights = class_weights(counts, [0, 1, 2])
    assert weights[0] == pytest.approx(3 * weights[2])
    assert weights[1] == 0
    assert (weights * torch.tensor([10, 0, 30])).sum() == pytest.approx(40)


def test_norms_and_biases_have_no_weight_decay_and_the_backbone_its_own_rate() -> None:
    config = replace(PLAIN, weight_decay=0.1, backbone_lr=0.5)
    backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    model = CountNet(backbone, 4, 8, 6, "all")
    groups = make_optimizer(config, model.head, model.backbone).param_groups
    told = [(g["scale"], g["weight_decay"], sorted({p.ndim for p in g["params"]})) for g in groups]
    assert told == [(0.5, 0.1, [4]), (0.5, 0.0, [1]), (1.0, 0.1, [2]), (1.0, 0.0, [1])]


def test_the_average_follows_the_weights_and_gives_them_back() -> None:
    model = CountNet(torch.nn.Identity(), 4, 8, 6, "head", seed=0)
    average = Average(model, 0.5, only_head=True)
    (weight, *_) = model.head.parameters()
    first = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1)
    average.update(1000)
    with average.applied():
        torch.testing.assert_close(weight.detach(), first + 0.5)
    torch.testing.assert_close(weight.detach(), first + 1)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_step_in_parts_is_the_step(shards: Path, tmp_path: Path) -> None:
    whole, parts = (
        settings(shards, tmp_path / str(n), trainable="head", accumulate=n) for n in (1, 3)
    )
    fit(whole)
    fit(parts)
    (one, _), (three, _) = (read_checkpoint(c.run / "last.pt") for c in (whole, parts))
    for name in one.model:
        torch.testing.assert_close(one.model[name], three.model[name], rtol=0, atol=1e-5)
    assert lines(whole.run)[1]["train"]["samples"] == lines(parts.run)[1]["train"]["samples"]


def test_a_greater_gradient_is_scaled_down_to_the_norm(shards: Path, tmp_path: Path) -> None:
    """One step of SGD with Nesterov's momentum goes 1.9 times the gradient."""
    recipe = {"trainable": "head", "optimizer": "sgd", "lr": 0.5, "weight_decay": 0.0}
    one_step = {"epochs": 1, "batch_size": 64, "warmup_epochs": 0}
    clipped, free, never = (
        settings(shards, tmp_path / name, clip_grad_norm=norm, **recipe, **one_step)
        for name, norm in (("clipped", 1e-3), ("free", 1e9), ("never", 0.0))
    )
    for config in (clipped, free, never):
        fit(config)
    assert same_tensors(free.run / "last.pt", never.run / "last.pt")
    fresh, _ = build_model(
        free.backbone,
        "none",
        image_size=64,
        head_width=128,
        num_classes=6,
        trainable="head",
        seed=0,
    )
    norms = []
    for config in (clipped, free):
        last, _ = read_checkpoint(config.run / "last.pt")
        moved = [last.model[f"head.{k}"] - v for k, v in fresh.head.state_dict().items()]
        norms.append(torch.stack([m.norm() for m in moved]).norm().item())
    assert norms[0] == pytest.approx(1.9 * 0.5 * 1e-3, rel=1e-3)
    assert norms[1] > 50 * norms[0]


def test_batches_of_validation_and_threads_decide_nothing(
    finished: Path, shards: Path, tmp_path: Path
) -> None:
    fit(settings(shards, tmp_path, eval_batch_size=7, decode_threads=1))
    assert same_tensors(tmp_path / "last.pt", finished / "last.pt")
    for mine, other in zip(lines(tmp_path), lines(finished), strict=True):
        assert mine["train"] == other["train"]
        assert mine["validation"]["loss"] == pytest.approx(other["validation"]["loss"], abs=1e-6)
        assert mine["validation"]["accuracy"] == other["validation"]["accuracy"]


def test_parts_that_are_too_small_for_the_network_are_told(shards: Path, tmp_path: Path) -> None:
    few = settings(shards, tmp_path, backbone="resnet18", image_size=32, batch_size=8, accumulate=6)
    with pytest.raises(UsageError, match=r"--batch-size 8: .* 6 parts is a single photo"):
        fit(few)


def test_the_backbone_is_frozen_first_and_trained_after(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, tmp_path / "run", freeze_epochs=1)
    fresh, _ = build_model(
        config.backbone,
        "none",
        image_size=config.image_size,
        head_width=config.head_width,
        num_classes=6,
        trainable="all",
        seed=config.seed,
    )
    models = []
    fit(config, lambda line: models.append(read_checkpoint(config.run / "last.pt")[0].model))
    frozen, trained = models[0], models[-1]
    backbone = {k: v for k, v in fresh.state_dict().items() if k.startswith("backbone.")}
    assert all(torch.equal(frozen[k], backbone[k]) for k in backbone)
    assert not any(torch.equal(trained[k], backbone[k]) for k in backbone if "conv" in k)


def test_the_averaged_weights_are_what_is_evaluated(shards: Path, tmp_path: Path) -> None:
    """A checkpoint answers as the metrics of its epoch say, whatever the recipe."""
    recipe = {"trainable": "head", "ema": 0.9, "lr": 0.03, "loss": "ordinal", "epochs": 1}
    fitted = fit(settings(shards, tmp_path, **recipe))
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["accuracy"] == fitted.best["validation"]["accuracy"]
    assert evaluation["loss"] == pytest.approx(fitted.best["validation"]["loss"], abs=1e-6)
    (last, _), (best, _) = (read_checkpoint(tmp_path / f"{name}.pt") for name in ("last", "best"))
    assert last.ema is not None
    assert last.ema.keys() == {k for k in last.model if k.startswith("head.")}
    built = last.build()[0].state_dict()
    assert all(torch.equal(built[name], last.ema[name]) for name in last.ema)
    assert best.ema is None
    assert all(torch.equal(built[name], best.model[name]) for name in built)


def test_a_run_ends_when_nothing_gets_better(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, tmp_path, trainable="head", epochs=30, patience=2, lr=1e-9)
    fitted = fit(config)
    assert fitted.stopped == "no better epoch in 2"
    assert [line["epoch"] for line in fitted.history] == [1, 2, 3]
    with pytest.raises(UsageError, match="holds a finished run"):
        fit(config)
    again = fit(replace(config, resume=True))
    assert (again.stopped, again.history) == (fitted.stopped, fitted.history)


def test_the_caller_hears_of_an_epoch_when_it_is_saved(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, tmp_path, trainable="head", epochs=3)
    told = []

    def hear(line: dict[str, Any]) -> None:
        checkpoint, _ = read_checkpoint(tmp_path / "last.pt")
        told.append((line["epoch"], checkpoint.epoch))

    fit(config, hear)
    assert told == [(1, 1), (2, 2), (3, 3)]


def test_the_best_epoch_is_the_one_of_the_metric_asked_for(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, tmp_path / "a", trainable="head", epochs=6, lr=0.05)
    ways: dict[MetricName, Callable[[list[float]], float]] = {
        "accuracy": max,
        "loss": min,
        "rmse": min,
    }
    for metric, extreme in ways.items():
        run = replace(config, run=tmp_path / metric, best_metric=metric)
        fitted = fit(run)
        values = [line["validation"][metric] for line in fitted.history]
        assert fitted.best["epoch"] == 1 + values.index(extreme(values))


def test_a_head_trained_without_a_run_is_the_one_of_the_run(shards: Path, tmp_path: Path) -> None:
    """Also where it waited after an epoch, and another process went on; and so does a run."""
    from tests.training.test_features import ALONE

    config = settings(shards, tmp_path, trainable="head", epochs=3, ema=0.5, dropout=0.1)
    paused = fit(config, lambda line: line["epoch"] == 2)
    assert (paused.finished, len(paused.history)) == (False, 2)
    fitted = fit(replace(config, resume=True))
    assert fitted.finished
    data = read_head_data(config, ALONE)
    trained = HeadTraining(config, data, ALONE)
    lines = [trained.train_epoch()]
    state = trained.state()
    trained = HeadTraining(config, data, ALONE)
    trained.load(state)
    while not trained.ended:
        lines.append(trained.train_epoch())
    timeless = [
        [{k: line[k] for k in ("epoch", "lr", "train", "validation")} for line in history]
        for history in (fitted.history, lines)
    ]
    assert trained.best == fitted.best
    assert timeless[0] == timeless[1]
    checkpoint, _ = read_checkpoint(tmp_path / "last.pt")
    head = trained.model.state_dict()
    assert all(torch.equal(head[name], checkpoint.model[name]) for name in head)


def test_a_checkpoint_from_before_these_settings_resumes(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, tmp_path)
    fit(config, be_terminated)
    checkpoint, _ = read_checkpoint(tmp_path / "last.pt")
    old = {
        k: v
        for k, v in checkpoint.config.items()
        if k not in ("dropout", "ema", "loss", "accumulate", "patience")
    }
    value = vars(checkpoint) | {"config": old, "stopped": ""}
    (tmp_path / "last.pt").write_bytes(checkpoint_bytes(type(checkpoint)(**value)))
    assert fit(replace(config, resume=True)).history[-1]["epoch"] == 2


def test_a_setting_that_is_gone_is_refused_where_it_was_used(shards: Path, tmp_path: Path) -> None:
    config = settings(shards, tmp_path)
    fit(config, be_terminated)
    checkpoint, _ = read_checkpoint(tmp_path / "last.pt")
    for used in (True, False):
        then = checkpoint.config | {"sync_batchnorm": used}
        (tmp_path / "last.pt").write_bytes(checkpoint_bytes(replace(checkpoint, config=then)))
        if used:
            with pytest.raises(UsageError, match="--sync-batchnorm True, which this version does"):
                fit(replace(config, resume=True))
    assert fit(replace(config, resume=True)).finished


def test_flags_win_over_the_preset() -> None:
    words = ["fit", "--lr", "0.5", "--preset", "capstone", "--run", "r"]
    assert with_preset(words)[-6:] == words[1:]
    assert with_preset(words)[:3] == ["fit", "--backbone", "resnet50"]
    assert with_preset(["evaluate", "--preset", "capstone"]) == ["evaluate", "--preset", "capstone"]
    with pytest.raises(UsageError, match="--preset fast: must be one of capstone, head, finetune"):
        preset("fast")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_made_of_settings_that_are_valid(name: str) -> None:
    config = replace(PLAIN, **preset(name))
    config.check()


@pytest.mark.slow
def test_a_run_by_preset_says_what_it_was(shards: Path, tmp_path: Path, run: Command) -> None:
    flags = ["--backbone", "timm:test_resnet", "--weights", "none", "--image-size", 64]
    flags += ["--batch-size", 16, "--epochs", 1, "--preset", "capstone"]
    run("training", "fit", "--shards", shards, "--run", tmp_path, *flags, check=True)
    checkpoint, _ = read_checkpoint(tmp_path / "last.pt")
    told = {name: checkpoint.config[name] for name in ("optimizer", "trainable", "batch_size")}
    assert told == {"optimizer": "adam", "trainable": "head", "batch_size": 16}
