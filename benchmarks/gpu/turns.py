"""The loader's or the training's benchmark, on photos that are there, in the time that is left."""

from __future__ import annotations

import sys

from benchmarks import loader, training
from benchmarks.gpu.context import Context

__all__ = ["PUBLISHED", "main"]

PUBLISHED = "published"
"""Folder, among the results, of what the benchmarks write."""
AFTER_S = 10.0
"""For drawing and writing them."""


def main(context: Context, name: str) -> int:
    """Writes NAME.json, .md, .png and .svg; 1 where a contestant failed."""
    folder, shards = context.results / PUBLISHED, str(context.work / "big")
    quick, seconds = context.smallest, context.left - AFTER_S
    if name == "training":
        return training.run(quick=quick, output=folder, shards=shards, seconds=seconds)
    small = context.work / "big224"
    return loader.run(
        quick=quick, output=folder, shards=shards, stored_small=small, seconds=seconds
    )


if __name__ == "__main__":
    name = sys.argv.pop(1)
    sys.exit(main(Context.read(), name))
