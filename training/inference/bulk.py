"""Counting the items in many photos: a split of a dataset, or all photos in a place, to Parquet.

The photos are cut into parts, always the same ones. A finished part is a file beside the output, so
that an interrupted run goes on at the first part that is missing; when all are there they become
the output, and are gone.
"""

from __future__ import annotations

import atexit
import hashlib
import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bintally.counting.checkpoint import read_checkpoint
from bintally.counting.counter import Counter
from bintally.counting.decision import Answer
from bintally.dataset.labels import are_counts
from bintally.dataset.manifest import open_tars, read_dataset
from bintally.dataset.samples import Samples
from bintally.dataset.shard_cache import ShardCache, shard_cache
from bintally.errors import UsageError, WorkError
from bintally.options import DeviceName, EngineName, PrecisionName
from bintally.ray_cluster import RayCluster
from bintally.storage.folder import Folder, delete_temporary_files, write_atomically
from bintally.storage.opening import open_place
from bintally.storage.place import TEMPORARY_SUFFIX
from bintally.terminal.progress import Progress, say

__all__ = ["BulkJob", "PlacePhotos", "SplitPhotos", "predict_bulk"]

PART = 2048
"""Photos of a part: some seconds of work, which is what an interruption costs."""
BATCH_SIZE = 32
FETCHERS = 32
"""Photos fetched at a time from a place."""
SHARDS_HELD = 6
"""Shards that a temporary cache has room for."""
KEY = "key.json"
PART_NAME = re.compile(rf"({re.escape(KEY)}|\d{{9,}}\.parquet)(.*{re.escape(TEMPORARY_SUFFIX)})?")


@dataclass(frozen=True)
class SplitPhotos:
    """A split of a dataset."""

    url: str
    split: str
    cache: Path | None = None
    cache_gib: float = 0.0

    def ids(self) -> list[str]:
        """Of its samples, in their order."""
        return self._samples().ids

    def read(self, begin: int, end: int) -> Iterator[tuple[str, bytes | str, int | str | None]]:
        """Samples: id, JPEG, and the true count, or name."""
        for photo, label, id_ in self._samples().read(np.arange(begin, end)):
            yield id_, photo.tobytes(), label

    def _samples(self) -> Samples:
        return _open_samples(self)


@cache
def _open_samples(source: SplitPhotos) -> Samples:
    place = open_place(source.url)
    dataset = read_dataset(place)
    kept = shard_cache(source.cache, source.cache_gib)
    if kept is not None or isinstance(open_tars(place, dataset), Folder):
        return Samples(place, dataset, source.split, kept)
    # Every shard is read once, so that a few of them at a time are enough.
    folder = Path(tempfile.mkdtemp(prefix="bintally-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    largest = max((shard.bytes for shard in dataset.splits[source.split].shards), default=0)
    return Samples(place, dataset, source.split, ShardCache(folder, SHARDS_HELD * largest))


@dataclass(frozen=True)
class PlacePhotos:
    """All JPEGs of a folder or below an S3 prefix."""

    url: str
    anonymous: bool = False

    def ids(self) -> list[str]:
        """Their paths, in order."""
        return [*_list_photos(self.url, self.anonymous)]

    def read(self, begin: int, end: int) -> Iterator[tuple[str, bytes | str, int | str | None]]:
        """Photos: path, and JPEG or why it cannot be read."""
        place = open_place(self.url, anonymous=self.anonymous)

        def get(path: str) -> bytes | str:
            try:
                return place.get(path)
            except FileNotFoundError:
                return "gone since the listing"
            except WorkError as error:
                return str(error)

        paths = self.ids()[begin:end]
        with ThreadPoolExecutor(FETCHERS) as pool:
            for path, data in zip(paths, pool.map(get, paths), strict=True):
                yield path, data, None


@cache
def _list_photos(url: str, anonymous: bool) -> tuple[str, ...]:
    place = open_place(url, anonymous=anonymous)
    place.check()
    paths = (entry.path for entry in place.entries())
    return tuple(sorted(p for p in paths if p.lower().endswith((".jpg", ".jpeg"))))


@dataclass(frozen=True)
class BulkJob:
    """What is counted, and how."""

    checkpoint: Path
    source: SplitPhotos | PlacePhotos
    device: DeviceName
    engine: EngineName
    precision: PrecisionName


def predict_bulk(job: BulkJob, output: Path, *, ray_address: str | None = None) -> tuple[int, int]:
    """Counts all photos of a source; how many there were, and how many could not be counted.

    Writes a row for each, in the source's order: `id`, `label` (the true count, of a dataset's
    samples), `count`, `confidence`, `expected`, `probability_N` for each class, `error`; where
    classes are names, `answer` in place of `count` and `expected`. The same source and checkpoint
    give the same bytes, interrupted or not. Raises `UsageError` for what does not exist, and for an
    output that is there and is no such table.
    """
    _check_replaceable(output)
    _, sha256 = read_checkpoint(job.checkpoint)
    ids = job.source.ids()
    if not ids:
        raise UsageError(f"{job.source.url}: no photos here")
    names = hashlib.sha256("\n".join(ids).encode()).hexdigest()
    key = {
        "model": sha256,
        "source": {k: v for k, v in asdict(job.source).items() if not k.startswith("cache")},
        "photos": names,
        "precision": job.precision,
        "engine": job.engine,
        "part": PART,
    }
    parts = output.with_name(f"{output.name}.parts")
    _begin(parts, json.dumps(key, sort_keys=True).encode())
    todo = [begin for begin in range(0, len(ids), PART) if not (parts / _name(begin)).exists()]
    finished = -(-len(ids) // PART) - len(todo)
    if finished:
        say(f"{finished} parts are there already")
    with Progress("counting", len(ids), "photos") as progress:
        progress.update(finished * PART)
        for begin, data in _run(job, todo, len(ids), ray_address):
            write_atomically(parts / _name(begin), data)
            progress.update(min(PART, len(ids) - begin))
    failed = _join(parts, output, len(ids))
    _empty(parts)
    parts.rmdir()
    return len(ids), failed


def _check_replaceable(output: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not output.exists():
        return
    try:
        columns = pq.read_schema(output).names
    except (OSError, pa.ArrowException):
        columns = []
    if not {"id", "label", "confidence", "error"} <= {*columns}:
        raise UsageError(f"--output {output}: is no table of counts, and stays; name another")


def _name(begin: int) -> str:
    return f"{begin:09d}.parquet"


def _begin(parts: Path, key: bytes) -> None:
    """Makes the folder of parts, or empties it of another job's."""
    if parts.exists():
        strange = [p.name for p in parts.iterdir() if not PART_NAME.fullmatch(p.name)]
        if strange or (any(parts.iterdir()) and not (parts / KEY).exists()):
            raise UsageError(f"{parts}: holds what is none of our parts; name another --output")
        delete_temporary_files(parts)
        if (parts / KEY).exists() and (parts / KEY).read_bytes() != key:
            _empty(parts)
    parts.mkdir(parents=True, exist_ok=True)
    write_atomically(parts / KEY, key)


def _empty(parts: Path) -> None:
    """Deletes all parts, and then the key, without which they would be nobody's."""
    for path in parts.glob("*.parquet"):
        path.unlink()
    (parts / KEY).unlink(missing_ok=True)


@dataclass(frozen=True)
class _Part:
    job: BulkJob
    begin: int
    end: int

    def run(self) -> tuple[int, bytes]:
        return self.begin, count_part(self.job, self.begin, self.end)


def _run(
    job: BulkJob, begins: Sequence[int], total: int, ray_address: str | None
) -> Iterator[tuple[int, bytes]]:
    """Parts as they are done: counted by this process, or by a Ray cluster's."""
    parts = [_Part(job, begin, min(total, begin + PART)) for begin in begins]
    if ray_address is None:
        yield from (part.run() for part in parts)
        return
    cluster = RayCluster(ray_address, gpus=1 if job.device == "cuda" else 0)
    try:
        yield from cluster.run(parts)
    finally:
        import ray

        ray.shutdown()


@cache
def _load(job: BulkJob) -> Counter:
    """Once for each process."""
    return Counter(
        job.checkpoint,
        device=job.device,
        engine=job.engine,
        precision=job.precision,
        batch_size=BATCH_SIZE,
    )


def count_part(job: BulkJob, begin: int, end: int) -> bytes:
    """Counts some photos of the source: the bytes of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    counter = _load(job)
    rows: list[dict[str, Any]] = []
    pending: list[int] = []

    def batches() -> Iterator[list[bytes]]:
        batch: list[bytes] = []
        for name, data, label in job.source.read(begin, end):
            rows.append({"id": name, "label": label})
            if isinstance(data, str):
                rows[-1]["error"] = data
                continue
            pending.append(len(rows) - 1)
            batch.append(data)
            if len(batch) == BATCH_SIZE:
                yield batch
                batch = []
        if batch:
            yield batch

    done = 0
    for counted in counter.count_ahead(batches()):
        for scores in counted:
            answer = Answer.of(scores, counter.classes, counter.decision.rule)
            rows[pending[done]] |= _columns(answer)
            done += 1
    answers: list[tuple[str, Any]]
    answers = [("count", pa.int32()), ("confidence", pa.float32()), ("expected", pa.float64())]
    if not are_counts(counter.classes):
        answers = [("answer", pa.string()), ("confidence", pa.float32())]
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("label", answers[0][1]),
            *answers,
            *((f"probability_{count}", pa.float32()) for count in counter.classes),
            ("error", pa.string()),
        ]
    )
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink)
    return sink.getvalue()


def _columns(answer: Answer) -> dict[str, Any]:
    value = answer.to_dict()
    shares = value.pop("probabilities", {})
    if "label" in value:  # Which is here the true one.
        value["answer"] = value.pop("label")
    return value | {f"probability_{count}": share for count, share in shares.items()}


def _join(parts: Path, output: Path, total: int) -> int:
    """Makes the output of its parts; how many photos could not be counted."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.concat_tables(pq.read_table(parts / _name(begin)) for begin in range(0, total, PART))
    sink = io.BytesIO()
    pq.write_table(table, sink)
    write_atomically(output, sink.getvalue())
    return total - int(table["error"].null_count)
