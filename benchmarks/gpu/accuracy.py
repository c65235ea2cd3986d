"""All of EfficientNet-Lite0 trained at 224 pixels: three seeds, each with a split of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.context import Context
from benchmarks.gpu.datasets import shard
from sharding.planning.options import Options
from training.report.history import read_history
from training.report.results import BEST, EVALUATION, METRICS

__all__ = ["lite0", "main"]

REPORTED = ("samples", "accuracy", "within_one", "rmse", "mae")


def main(context: Context) -> int:
    """Keeps `accuracy.json`; 1 where a training failed. All seeds are trained at the same time,
    which changes no accuracy."""
    bucket = context.work / "bucket224"
    bucket = bucket if bucket.exists() else context.work / "rendered-bucket"
    seeds: Sequence[int] = (0, 1, 2)
    epochs, size, batch = 12, 224, 64
    if context.smallest:
        seeds, epochs, size, batch = (0,), 1, 64, 8
    processes = []
    for seed in seeds:
        shard(context, bucket, f"shards{seed}", Options(seed=seed))
        fit = [
            *("fit", "--preset", "finetune", "--seed", str(seed), "--epochs", str(epochs)),
            *("--shards", str(context.work / f"shards{seed}"), *lite0(context)),
            *("--run", str(context.work / f"run{seed}")),
            *("--image-size", str(size), "--batch-size", str(batch)),
        ]
        processes.append(subprocess.Popen([sys.executable, "-m", "training", *fit]))
    began = time.monotonic()
    failed = sum(process.wait() != 0 for process in processes)
    took = time.monotonic() - began
    for seed in seeds:
        best = context.work / f"run{seed}" / BEST
        shards = context.work / f"shards{seed}"
        evaluate = ["evaluate", "--checkpoint", str(best), "--shards", str(shards)]
        failed += subprocess.run([sys.executable, "-m", "training", *evaluate]).returncode != 0
    report: dict[str, Any] = {
        "photos": bucket.name,
        "weights": context.weights.rpartition("/")[2],
        "epochs": epochs,
        "image_size": size,
        "seconds": round(took, 1),
        "seeds": {seed: outcome(context.work / f"run{seed}", epochs) for seed in seeds},
    }
    tests = [seed["test"] for seed in report["seeds"].values() if "test" in seed]
    if tests:
        report["mean"] = {name: statistics.fmean(test[name] for test in tests) for name in REPORTED}
    context.keep("accuracy", report)
    context.say(report)
    return int(failed > 0)


def lite0(context: Context) -> list[str]:
    """The flags of `fit` and `search` for the network."""
    return ["--backbone", "timm:tf_efficientnet_lite0", "--weights", context.weights]


def outcome(run: Path, epochs: int) -> dict[str, Any]:
    """Of the test split, and epoch by epoch."""
    report: dict[str, Any] = {}
    if (test := run / "evaluation-test" / EVALUATION).exists():
        evaluation = json.loads(test.read_text())
        report["test"] = {name: evaluation[name] for name in REPORTED}
    lines = read_history(run / METRICS, epochs)
    report["images_per_s"] = [round(line["images_per_s"]) for line in lines]
    report["data_wait_share"] = [round(line["data_wait_share"], 3) for line in lines]
    report["validation"] = [
        {name: round(line["validation"][name], 4) for name in REPORTED} for line in lines
    ]
    return report


if __name__ == "__main__":
    sys.exit(main(Context.read()))
