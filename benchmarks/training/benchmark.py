"""The training benchmark: `python -m benchmarks training`, see `Training` in `__main__`."""

from __future__ import annotations

import math
import os
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.environment import read_environment
from benchmarks.measure import Contestant, take_turns
from benchmarks.plot import publish
from benchmarks.results import Metric, Report, results_folder
from benchmarks.training.contestants import (
    WARMUP_STEPS,
    Workload,
    ours,
    timm_loop,
    torchvision_loop,
)
from bintally.terminal.progress import say

__all__ = ["render", "run", "unpack"]

LIBRARIES = ("torch", "torchvision", "timm", "nvidia-dali-cuda130", "pillow", "simplejpeg")
METRICS = (
    Metric("photos_per_s", "photos/s"),
    Metric("cpu_s_per_1000", "CPU s per 1,000 photos", 1),
    Metric("peak_memory_mib", "peak memory, MiB"),
)


def run(
    *,
    quick: bool,
    output: Path | None,
    shards: str | None,
    num_rounds: int | None = None,
    seconds: float = math.inf,
) -> int:
    """Measures all contestants and writes the results; 1 where one failed.

    `seconds` is how long all may take.
    """
    began = time.monotonic()
    num_rounds = num_rounds or (2 if quick else 5)
    environment = read_environment(LIBRARIES)
    folder = results_folder(output, environment, quick)
    on_gpu = environment.gpu is not None
    with tempfile.TemporaryDirectory(prefix="bintally-training-") as temporary:
        scratch = Path(temporary)
        place = shards or render(scratch, (256 if quick else 768) * (16 if on_gpu else 1))
        workload = Workload(
            shards=place,
            image_folder=unpack(place, scratch / "photos"),
            backbone="resnet50" if on_gpu else "resnet18",
            image_size=224 if on_gpu else 96,
            batch_size=256 if on_gpu else 32,
            device="cuda" if on_gpu else "cpu",
            precision="bf16" if on_gpu else "fp32",
            num_workers=os.cpu_count() or 1,
        )
        results = take_turns(
            _contestants(workload),
            num_rounds,
            task="training",
            num_warmups=1 if math.isinf(seconds) else 0,
            seconds=seconds - (time.monotonic() - began),
        )
    report = Report(
        name="training",
        title="Training: from photos on disk to steps of the optimiser",
        metrics=METRICS,
        workload={
            "network": f"{workload.backbone} from scratch, all of it trained, AdamW",
            "input": f"{workload.image_size}×{workload.image_size}, batch {workload.batch_size}",
            "precision": workload.precision,
            "device": workload.device,
            "source": "rendered bins" if shards is None else "the dataset that --shards names",
            "epochs": "one, shuffled, from the page cache",
        },
        notes=[
            f"photos/s: wall time over the epoch without its first {WARMUP_STEPS} steps.",
            "End to end: with the debugger that is on by default. Model only: the same loop on one "
            "batch that is there already, and no debugger; end to end can at most be as fast. "
            "Loader only: the same batches, and no steps.",
            "The peers' loops are written after the scripts named; the scripts themselves are not "
            "part of the libraries.",
        ],
        num_rounds=num_rounds,
        quick=quick,
        environment=environment,
        results=results,
    )
    return publish(report, folder)


def _contestants(workload: Workload) -> list[Contestant]:
    workers = workload.num_workers
    own: dict[str, str | int | bool] = {"layout": "channels last", "optimiser": "fused"}
    return [
        Contestant("ours, end to end", partial(ours, workload, "all"), own, "ours"),
        Contestant("ours, model only", partial(ours, workload, "model"), own, "limit"),
        Contestant(
            "torchvision's reference",
            partial(torchvision_loop, workload),
            {"decode": "PIL", "workers": workers, "layout": "channels first"},
        ),
        Contestant(
            "timm's train script",
            partial(timm_loop, workload),
            {"decode": "PIL", "workers": workers, "layout": "channels last"},
        ),
        Contestant("ours, loader only", partial(ours, workload, "loader"), own, "limit"),
    ]


def render(scratch: Path, images: int, split: tuple[float, float, float] = (1.0, 0.0, 0.0)) -> str:
    """A dataset of rendered photos, nearly all in the train split if nothing else is said."""
    from bintally.storage.opening import open_place
    from sharding.build import build
    from sharding.distribute import Processes
    from sharding.planning.options import Options
    from synthetic.synthesize import synthesize

    say(f"rendering {images:,} photos")
    source, destination = open_place(scratch / "bucket"), open_place(scratch / "shards")
    synthesize(source, images=images, seed=0)
    options = Options(split=split, group="none")
    build(source, destination, options, distributor=Processes(1), connections=8)
    return str(destination)


def unpack(shards: str, folder: Path, split: str = "train") -> Path:
    """A split as files, a folder below this one, for those who read no shards."""
    from bintally.dataset.manifest import read_dataset
    from bintally.dataset.samples import Samples
    from bintally.storage.opening import open_place

    place = open_place(shards)
    dataset = read_dataset(place)
    photos = folder / split
    samples = Samples(place, dataset, split)
    labels = samples.labels(range(len(samples)), dataset.classes)
    for index, label in enumerate(labels):
        path = photos / f"{label:03d}" / f"{samples.ids[index]}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(samples.photo(index).tobytes())
    return photos
