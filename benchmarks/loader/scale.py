"""The loader over very many shards: `python -m benchmarks scale`, see `Scale` in `__main__`.

100,000 shards are as many links to one tar of 1,000 tiny photos, and to its index: enough to tell
what a dataset of 100 million samples costs to open and to order, without its bytes.
"""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import tempfile
import time
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path

from benchmarks.environment import read_environment
from benchmarks.measure import Contestant, Measurement, take_turns
from benchmarks.results import Metric, results_folder
from bintally.errors import WorkError
from bintally.storage.folder import write_atomically
from bintally.terminal.progress import say

__all__ = ["open_and_order", "run", "write_links"]

SHARDS = 100_000
SHARDS_QUICK = 1_000
PHOTOS = 1_000
"""Of each shard."""
BATCH_SIZE = 256
IMAGE_SIZE = 32
STEPS = 2_000
METRICS = (
    Metric("first_batch_s", "from the loader's making to its first batch, s", 2),
    Metric("open_s", "of which to open the dataset, s", 2),
    Metric("anonymous_mib", "memory beyond the imports' then, MiB"),
    Metric("order_ms", "order of a step, ms", 3),
)


def run(*, quick: bool, output: Path | None) -> int:
    """Measures and writes `scale.json`; 1 where it failed."""
    environment = read_environment(("numpy", "torch"))
    folder = results_folder(output, environment, quick)
    num_shards, num_rounds = (SHARDS_QUICK, 2) if quick else (SHARDS, 3)
    with tempfile.TemporaryDirectory(prefix="bintally-scale-") as temporary:
        say(f"linking {num_shards:,} shards")
        dataset = Path(temporary)
        write_links(dataset, num_shards)
        loader = Contestant("loader", partial(open_and_order, dataset), {}, "ours")
        (result,) = take_turns([loader], num_rounds, task="scale")
    if result.error is not None:
        raise WorkError(f"scale: {result.error}")
    spreads = {metric.key: result.spread(metric.key) for metric in METRICS}
    written = {
        "quick": quick,
        "rounds": num_rounds,
        "workload": {
            "shards": num_shards,
            "samples": num_shards * PHOTOS,
            "batch": BATCH_SIZE,
            "image_size": IMAGE_SIZE,
            "steps": STEPS,
        },
        "titles": {metric.key: metric.title for metric in METRICS},
        "metrics": {key: asdict(spread) for key, spread in spreads.items() if spread},
        "environment": environment.to_dict(),
    }
    path = folder / "scale.json"
    text = json.dumps(written, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())
    print(f"{num_shards:,} shards, {num_shards * PHOTOS:,} samples; median of {num_rounds}:")
    for metric in METRICS:
        spread = spreads[metric.key]
        if spread:
            print(f"  {metric.title}: {metric.format(spread.median)}")
    print(path)
    return 0


def write_links(folder: Path, num_shards: int) -> None:
    """Writes a dataset whose shards are all the same tar."""
    import numpy as np
    from PIL import Image

    from bintally.dataset.index import format_index
    from bintally.dataset.manifest import DATASET, Dataset, Shard, Split
    from sharding.tar import TarBuilder

    draw = np.random.default_rng(0)
    tar = TarBuilder()
    for number in range(PHOTOS):
        photo = io.BytesIO()
        pixels = draw.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(photo, "jpeg")
        files = [("jpg", photo.getvalue()), ("cls", b"%d" % (number % 6)), ("json", b"{}")]
        tar.add(f"{number:05d}", files)
    data = b"".join(tar.finish())
    index = format_index(tar.samples)
    counts = {str(c): len(range(c, PHOTOS, 6)) for c in range(6)}
    digest = hashlib.sha256(data).hexdigest()
    shards = []
    # A file system bounds the links to a file: a new copy every so often.
    for number in range(num_shards):
        thousand, name = divmod(number, 1_000)
        below = folder / f"train/{thousand:03d}"
        if name == 0:
            below.mkdir(parents=True)
            (below / "000.tar").write_bytes(data)
            (below / "000.idx").write_bytes(index)
        else:
            os.link(below / "000.tar", below / f"{name:03d}.tar")
            os.link(below / "000.idx", below / f"{name:03d}.idx")
        path = f"train/{thousand:03d}/{name:03d}"
        shards.append(Shard(f"{path}.tar", f"{path}.idx", PHOTOS, len(data), digest, counts))
    all_counts = {c: n * num_shards for c, n in counts.items()}
    nothing = {name: Split(0, dict.fromkeys(counts, 0), []) for name in ("validation", "test")}
    splits = {"train": Split(PHOTOS * num_shards, all_counts, shards), **nothing}
    dataset = Dataset(list(range(6)), 0, {}, {}, splits)
    (folder / DATASET).write_bytes(dataset.to_json())


def open_and_order(folder: Path) -> Measurement:
    """Opens the dataset, takes a batch, and works out the order of many steps."""
    # What an import takes is not a dataset's.
    import torch  # noqa: F401

    import bintally.loading.resize  # noqa: F401
    from bintally.loading.loader import Loader

    gc.collect()
    before_kib, began = _anonymous_kib(), time.perf_counter()
    loader = Loader(
        folder, batch_size=BATCH_SIZE, image_size=IMAGE_SIZE, device="cpu", engine="cpu"
    )
    opened_at = time.perf_counter()
    batches = iter(loader)
    next(batches)
    first_at, after_kib = time.perf_counter(), _anonymous_kib()
    batches.close()  # type: ignore[attr-defined]
    steps_from = time.perf_counter()
    num_steps = sum(1 for _ in islice(loader.order.batches(0, 0), STEPS))
    order_s = time.perf_counter() - steps_from
    return {
        "first_batch_s": first_at - began,
        "open_s": opened_at - began,
        "anonymous_mib": (after_kib - before_kib) / 1024,
        "order_ms": order_s * 1000 / num_steps,
    }


def _anonymous_kib() -> int:
    """Memory of this process that no file lies behind (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise WorkError("this system does not tell a process's anonymous memory (Linux's does)")
