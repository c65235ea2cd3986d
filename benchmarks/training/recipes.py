"""Recipes side by side: heads on kept features of a frozen backbone, some seeds each.

`python -m benchmarks.training.recipes --shards PLACE… --backbone … --weights … --output FILE`
trains every recipe of `RECIPES` on every dataset (one for each seed of the split) with the seed of
its own, and writes what validation said. The test split is no business of this.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from bintally.storage.folder import write_atomically
from bintally.terminal.command import main
from training.config import FitConfig
from training.presets import preset

__all__ = ["RECIPES", "Recipes"]

HEAD: dict[str, Any] = {"trainable": "head", "optimizer": "adamw", "lr": 0.001, "epochs": 12}

RECIPES: dict[str, dict[str, Any]] = {
    "capstone": {k: v for k, v in preset("capstone").items() if k != "backbone"},
    "AdamW, 12 epochs": HEAD,
    "20 epochs": HEAD | {"epochs": 20},
    "dropout 0.3": HEAD | {"dropout": 0.3},
    "dropout 0.5": HEAD | {"dropout": 0.5},
    "head of 512": HEAD | {"head_width": 512},
    "head of 512, dropout 0.5": HEAD | {"head_width": 512, "dropout": 0.5},
    "label smoothing 0.1": HEAD | {"label_smoothing": 0.1},
    "average of weights": HEAD | {"ema": 0.98},
    "balanced classes": HEAD | {"balance": "loss"},
    "ordinal": HEAD | {"loss": "ordinal"},
    "ordinal, average": HEAD | {"loss": "ordinal", "ema": 0.98},
    "ordinal, dropout 0.3": HEAD | {"loss": "ordinal", "dropout": 0.3},
    "ordinal, 512, dropout 0.5, average": HEAD
    | {"loss": "ordinal", "head_width": 512, "dropout": 0.5, "ema": 0.98},
    "ordinal, 512, dropout 0.5, average, 20 epochs": HEAD
    | {"loss": "ordinal", "head_width": 512, "dropout": 0.5, "ema": 0.98, "epochs": 20},
    "weight decay 0.1": HEAD | {"weight_decay": 0.1},
    "SGD 0.01": HEAD | {"optimizer": "sgd", "lr": 0.01},
    "batch 32, lr 0.0003": HEAD | {"batch_size": 32, "lr": 0.0003},
}


@dataclass(frozen=True)
class Recipes:
    """Compare recipes for a head by their validation."""

    shards: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PLACE")]
    """Datasets, one for each seed: the first is trained on with seed 0, the next with 1, …"""
    backbone: str
    weights: str
    output: Path
    """The JSON file of results."""

    def execute(self) -> int:
        import torch

        from training.heads import HeadTraining, read_head_data
        from training.launch.distributed import Process

        process = Process(0, 1, 0, torch.device("cpu"))
        configs = [
            FitConfig(place, Path(), backbone=self.backbone, weights=self.weights, seed=seed)
            for seed, place in enumerate(self.shards)
        ]
        data = [read_head_data(config, process) for config in configs]
        results = []
        for name, settings in RECIPES.items():
            began = time.monotonic()
            best = []
            for config, own in zip(configs, data, strict=True):
                head = HeadTraining(replace(config, **settings), own, process)
                while not head.ended:
                    head.train_epoch()
                best.append(head.best)
            result: dict[str, Any] = {"recipe": name, "settings": settings, "best": best}
            for metric in ("accuracy", "rmse", "loss"):
                values = [one["validation"][metric] for one in best]
                result[metric] = {
                    "mean": statistics.fmean(values),
                    "spread": statistics.stdev(values) if len(values) > 1 else 0.0,
                }
            result["seconds"] = time.monotonic() - began
            results.append(result)
            shown = (f"{m} {result[m]['mean']:.4f} ± {result[m]['spread']:.4f}" for m in METRICS)
            print(f"{name:<46} {'  '.join(shown)}", flush=True)
        write_atomically(self.output, (json.dumps(results, indent=1) + "\n").encode())
        return 0


METRICS = ("accuracy", "rmse", "loss")

if __name__ == "__main__":
    sys.exit(main(Recipes, sys.argv[1:], prog="python -m benchmarks.training.recipes"))
