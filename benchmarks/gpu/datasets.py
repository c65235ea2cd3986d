"""Datasets for the other steps: many photos out of few, by links, and the small ones."""

from __future__ import annotations

import itertools
from pathlib import Path

from benchmarks.gpu.context import Context
from bintally.storage.opening import open_place
from sharding.build import build
from sharding.distribute import Processes
from sharding.planning.options import Options
from synthetic.synthesize import synthesize

__all__ = ["main"]


def main(context: Context) -> None:
    """Makes `big` and `big224` (the same photos, stored at 224×224), and `rendered`."""
    if not context.originals.exists():
        synthesize(open_place(context.originals), images=40 if context.smallest else 400, seed=0)
    rendered = context.work / "rendered-bucket"
    synthesize(open_place(rendered), images=80 if context.smallest else 200, seed=1)
    shard(context, rendered, "rendered", Options())
    number = 240 if context.smallest else 20_000
    bucket = context.work / "big-bucket"
    repeat(context.originals, bucket, number)
    # As many shards as 16 workers of webdataset can share.
    options = {"split": (1.0, 0.0, 0.0), "group": "none", "shard_samples": number // 32}
    shard(context, bucket, "big", Options(**options))  # type: ignore[arg-type]
    shard(context, bucket, "big224", Options(**options, resize="224x224"))  # type: ignore[arg-type]


def shard(context: Context, bucket: Path, name: str, options: Options) -> None:
    """Builds a dataset of a bucket."""
    source, destination = open_place(bucket), open_place(context.work / name)
    build(source, destination, options, distributor=Processes(context.cores), connections=32)


def repeat(source: Path, bucket: Path, number: int) -> None:
    """A bucket of `number` photos, which are those of another one again and again."""
    for folder in ("bin-images", "metadata"):
        (bucket / folder).mkdir(parents=True, exist_ok=True)
    photos = sorted((source / "bin-images").glob("*.jpg"))
    for i, photo in zip(range(number), itertools.cycle(photos), strict=False):
        name = f"{900_000 + 3 * i}"  # Photos of one bin have neighbouring ids.
        (bucket / f"bin-images/{name}.jpg").symlink_to(photo.resolve())
        metadata = source / f"metadata/{photo.stem}.json"
        (bucket / f"metadata/{name}.json").symlink_to(metadata.resolve())


if __name__ == "__main__":
    main(Context.read())
