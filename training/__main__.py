"""The commands of stage 2: `bintally fit|evaluate|predict|export`, or `python -m training …`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bintally.errors import UsageError
from bintally.options import DeviceName, EngineName, OnBadSample, PrecisionName
from bintally.terminal.command import main
from training.config import FitConfig
from training.launch.launcher import end_with_launcher
from training.launch.sagemaker import deliver, with_job
from training.presets import with_preset

CheckpointFile = Annotated[Path, tyro.conf.arg(metavar="FILE")]


@dataclass(frozen=True)
class Fit(FitConfig):
    """Train a model on shards.

    On several GPUs: torchrun --nproc-per-node=8 -m -- bintally fit … (without the two dashes,
    torchrun takes --run for an option of its own). A CPU will do for a try with --backbone
    resnet18 --weights none --image-size 96.
    """

    ray: str | None = None
    """Train on a Ray cluster: its address, or auto for the one this machine belongs to."""
    workers: int = 1
    """Processes on the Ray cluster; each takes a GPU where there are any."""

    def execute(self) -> int:
        end_with_launcher()
        config = FitConfig(**{f.name: getattr(self, f.name) for f in fields(FitConfig)})
        if self.ray is not None:
            from training.launch.ray_train import fit_on_ray

            fit_on_ray(config, self.ray, self.workers)
            return 0
        if self.workers != 1:
            raise UsageError("--workers: is for --ray; torchrun starts processes without it")
        from training.fit import fit

        if fit(config).finished and os.environ.get("RANK", "0") == "0":
            deliver(config.run, os.environ)
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Measure a checkpoint on a split, every sample once. Under torchrun, on all processes."""

    checkpoint: CheckpointFile
    """best.pt or last.pt of a run."""
    shards: str
    """The dataset that `bintally build` made: a folder, or s3://BUCKET/PREFIX."""
    split: Literal["train", "validation", "test"] = "test"
    cache: Path | None = None
    """Folder to which shards on S3 are brought."""
    cache_gib: float = 0.0
    """The most that --cache may hold, in GiB; 0 is no limit."""
    output: Path | None = None
    """Folder for evaluation.json and report.html, which may hold no run; if none is named,
    evaluation-SPLIT beside the checkpoint, or for another dataset than it was trained on
    evaluation-SPLIT-DATASET."""
    batch_size: int = 128
    on_bad_sample: OnBadSample = "stop"
    """What a photo does that does not decode: end the evaluation, or be left out of all metrics,
    which is told and counted."""
    precision: PrecisionName = "auto"
    """auto is bf16 where the GPU or CPU computes it, fp32 elsewhere."""
    engine: EngineName = "auto"
    device: DeviceName = "auto"

    def execute(self) -> int:
        from bintally.dataset.shard_cache import shard_cache

        end_with_launcher()
        from training.inference.measure import measure
        from training.report.results import REPORT

        if self.batch_size < 1:
            raise UsageError(f"--batch-size {self.batch_size}: must be at least 1")
        summary, folder = measure(
            self.checkpoint,
            self.shards,
            self.split,
            self.output,
            batch_size=self.batch_size,
            precision=self.precision,
            engine_name=self.engine,
            device=self.device,
            on_bad_sample=self.on_bad_sample,
            cache=shard_cache(self.cache, self.cache_gib),
        )
        if summary is not None:
            _print_summary(summary)
            print(f"report: {folder / REPORT}")
        return 0


def _print_summary(summary: dict[str, Any]) -> None:
    baseline = summary["baseline"]
    print(f"{summary['samples']:,} photos of the {summary['split']} split, each counted once")
    if summary["left_out"]:
        print(f"{summary['left_out']:,} do not decode, and are left out of all metrics")
    rule, argmax = summary["decision"]["rule"], summary["argmax"]
    columns = [("model", summary), (f"always {baseline['count']}", baseline)]
    if rule != "argmax":
        columns = [(rule, summary), ("argmax", argmax), columns[1]]
    widths = [max(9, len(title) + 3) for title, _ in columns]
    print(" " * 12 + "".join(f"{c[0]:>{w}}" for c, w in zip(columns, widths, strict=True)))
    rows = (
        ("accuracy", "accuracy", ".2%"),
        ("within_one", "within one", ".2%"),
        ("rmse", "RMSE", ".3f"),
        ("mae", "MAE", ".3f"),
    )
    for name, title, form in rows:
        if summary[name] is None:
            print(f"{title:<12}{'needs counts':>{sum(widths)}}")
        else:
            cells = (f"{c[1][name]:>{w}{form}}" for c, w in zip(columns, widths, strict=True))
            print(f"{title:<12}{''.join(cells)}")
    print(
        f"expected calibration error {summary['ece']:.2%}, without the temperature "
        f"{summary['decision']['temperature']:g} {summary['ece_uncalibrated']:.2%}"
    )
    classes = [str(name) for name in summary["classes"]]
    if len(classes) > MOST_PRINTED:
        return
    print("confusion matrix (rows: true, columns: answer)")
    width = max(6, *(len(name) + 1 for name in classes))
    print(" " * width + "".join(f"{name:>{width}}" for name in classes))
    for name, row in zip(classes, summary["confusion_matrix"], strict=True):
        print(f"{name:>{width}}" + "".join(f"{n:>{width}}" for n in row))


MOST_PRINTED = 112
"""Classes of a confusion matrix for a terminal: as many as ABID has counts."""


@dataclass(frozen=True)
class Predict:
    """Count the items in photos: a line of JSON for each, or a Parquet file of many.

    bintally predict --checkpoint best.pt photo.jpg …
    bintally predict --checkpoint best.pt --shards DEST --split test --output FILE.parquet
    bintally predict --checkpoint best.pt --photos PLACE --output FILE.parquet

    The latter two go on where they were interrupted.
    """

    checkpoint: CheckpointFile
    """best.pt or last.pt of a run."""
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE")] = ()
    """Photos (JPEG)."""
    shards: str | None = None
    """A dataset, of which a split is counted: a folder that `bintally build` made."""
    split: Literal["train", "validation", "test"] = "test"
    photos: str | None = None
    """A folder, or s3://bucket/prefix, all JPEGs of which are counted."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE.parquet")] = None
    """Where the counts of --shards or --photos go."""
    cache: Path | None = None
    """Folder that keeps shards from S3; without one, a few at a time are fetched."""
    cache_gib: float = 0.0
    """The most that --cache may hold, in GiB; 0 is no limit."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """A Ray cluster that counts: auto, or HOST:PORT. Its nodes must reach checkpoint and photos."""
    anonymous: bool = False
    """Send unsigned requests to S3."""
    precision: PrecisionName = "auto"
    """auto is bf16 where the GPU or CPU computes it, fp32 elsewhere."""
    engine: EngineName = "auto"
    device: DeviceName = "auto"

    def execute(self) -> int:
        if sum([bool(self.images), self.shards is not None, self.photos is not None]) != 1:
            raise UsageError("name photos, or --shards, or --photos: one of the three")
        if (self.output is None) != bool(self.images):
            raise UsageError("--output goes with --shards or --photos, which need it")
        return self._print() if self.output is None else self._write(self.output)

    def _print(self) -> int:
        from training.inference.predict import predict

        failed = False
        for answer in predict(
            self.checkpoint,
            self.images,
            device=self.device,
            engine=self.engine,
            precision=self.precision,
        ):
            failed |= "error" in answer
            print(json.dumps(answer), flush=True)
        return 1 if failed else 0

    def _write(self, output: Path) -> int:
        from training.inference.bulk import BulkJob, PlacePhotos, SplitPhotos, predict_bulk

        source = (
            SplitPhotos(self.shards, self.split, self.cache, self.cache_gib)
            if self.shards is not None
            else PlacePhotos(self.photos or "", self.anonymous)
        )
        job = BulkJob(self.checkpoint.absolute(), source, self.device, self.engine, self.precision)
        photos, failed = predict_bulk(job, output, ray_address=self.ray)
        print(f"{photos:,} photos, {failed:,} of them not counted: {output}")
        return 1 if failed else 0


@dataclass(frozen=True)
class Export:
    """Write a checkpoint as an ONNX file: a photo's pixels in, its count out.

    Input: photos, uint8 (batch, height, width, 3), RGB, of any size. Outputs: count, int64 (batch),
    by the checkpoint's decision rule, and probabilities, float32 (batch, classes), calibrated.
    Metadata: classes, rule and temperature. The file is checked with onnxruntime.
    """

    checkpoint: CheckpointFile
    """best.pt or last.pt of a run."""
    output: CheckpointFile
    """The ONNX file."""

    def execute(self) -> int:
        from training.inference.export import export

        difference = export(self.checkpoint, self.output)
        print(f"{self.output}: probabilities differ by at most {difference:.1g} from PyTorch's")
        return 0


COMMANDS = Fit | Evaluate | Predict | Export


def rewrite(words: Sequence[str]) -> Sequence[str]:
    """What a job's hyperparameters and a preset stand for, as flags; the former may name one."""
    return with_preset(with_job(words, os.environ))


if __name__ == "__main__":
    sys.exit(
        main(
            COMMANDS,
            sys.argv[1:],
            prog="python -m training",
            description="Stage 2: shards become a model that counts.",
            rewrite=rewrite,
        )
    )
