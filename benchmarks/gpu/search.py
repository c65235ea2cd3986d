"""A search whose trials share the GPU, four at a time."""

from __future__ import annotations

from benchmarks.gpu.context import TINY, Context
from tuning.config import SearchConfig
from tuning.results import read_trials
from tuning.search import search

__all__ = ["main"]

SPACE = """lr = {low = 0.0003, high = 0.003, log = true}
epochs = 2
freeze_epochs = 0
"""


def main(context: Context) -> None:
    """Keeps `search.json`."""
    space, folder = context.work / "space.toml", context.work / "search"
    space.write_text(SPACE + "batch_size = 8\n" * context.smallest)
    trials = 2 if context.smallest else 8
    report = search(
        SearchConfig(
            str(context.work / ("rendered" if context.smallest else "shards0")),
            folder,
            preset="finetune",
            backbone=TINY if context.smallest else "timm:tf_efficientnet_lite0",
            weights="none" if context.smallest else context.weights,
            trials=trials,
            repeats=0,
            gpus_per_trial=0.25 if context.on_gpu else -1.0,
            cpus_per_trial=1.0 if context.smallest else 4.0,
            image_size=32 if context.smallest else 128,
            space=space,
        )
    )
    kept = {
        "seconds": [round(trial.seconds, 1) for trial in read_trials(folder)],
        "concurrency": report["concurrency"],
        "gpu_hours": report["gpu_hours"],
    }
    context.keep("search", kept)
    context.say(kept)


if __name__ == "__main__":
    main(Context.read())
