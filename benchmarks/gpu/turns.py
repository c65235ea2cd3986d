"""The loader's or the training's benchmark, on photos that are there, in the time that is left."""

from __future__ import annotations

import sys
from functools import partial

import benchmarks.loader.benchmark as loader
import benchmarks.training.benchmark as training
from benchmarks.gpu.context import Context

__all__ = ["PUBLISHED", "main"]

PUBLISHED = "published"
"""Folder, among the results, of what the benchmarks write."""
AFTER_S = 10.0
"""For drawing and writing them."""


def main(context: Context, name: str) -> int:
    """Writes NAME.json, .md, .png and .svg; 1 where a contestant failed."""
    folder, shards = context.results / PUBLISHED, str(context.work / "big")
    measure = training.run
    if name == "loader":
        measure = partial(loader.run, stored_small=context.work / "big224")
    return measure(
        quick=context.smallest,
        output=folder,
        shards=shards,
        num_rounds=1 if context.smallest else None,
        seconds=context.left - AFTER_S,
    )


if __name__ == "__main__":
    name = sys.argv.pop(1)
    sys.exit(main(Context.read(), name))
