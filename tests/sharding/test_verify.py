"""`verify` finds whatever is not as it was written."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from bintally.dataset.catalog import encode_catalog, read_catalog
from bintally.dataset.index import format_index
from bintally.dataset.manifest import Dataset, Shard, Split, read_dataset
from bintally.ray_cluster import Job
from bintally.storage.opening import open_place
from sharding.distribute import Processes
from sharding.tar import TarBuilder
from sharding.verify import verify
from tests.conftest import Command
from tests.foreign_tars import photo, tar_of

T = TypeVar("T")


def faults(folder: Path, *, decode: bool = False) -> list[str]:
    return verify(open_place(folder), decode=decode, distributor=Processes(1))[1]


def shards_of(place: Path | str) -> list[Shard]:
    return read_dataset(place).shards


def test_a_whole_dataset_has_no_faults(shards: Path) -> None:
    assert faults(shards, decode=True) == []


def flip(path: Path, at: int, bits: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= bits
    path.write_bytes(data)


class Backwards:
    """Runs the last job first, as another process would, and so ends with the first."""

    workers = 1

    def run(self, jobs: Iterable[Job[T]]) -> Iterator[T]:
        for job in reversed([*jobs]):
            yield pickle.loads(pickle.dumps(job)).run()


def test_damage_is_told_in_the_order_of_the_dataset_whoever_finds_it_first(damaged: Path) -> None:
    for shard in shards_of(damaged):
        flip(damaged / shard.path, 5000)
    shutil.copy(damaged / "train/train-000000.tar", damaged / "test/test-000000.tar")
    found = faults(damaged)
    assert len(found) > 10
    place = open_place(damaged)
    for distributor in (Backwards(), Processes(2)):
        assert verify(place, decode=False, distributor=distributor)[1] == found


def test_a_job_takes_along_its_own_rows_only(small_shards: Path) -> None:
    sizes: list[int] = []

    class Weighing(Backwards):
        def run(self, jobs: Iterable[Job[T]]) -> Iterator[T]:
            all_jobs = [*jobs]
            sizes.extend(len(pickle.dumps(job)) for job in all_jobs)
            return super().run(all_jobs)

    assert verify(open_place(small_shards), decode=False, distributor=Weighing())[1] == []
    assert len(sizes) > 20
    assert max(sizes) < 5000


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing tar": (lambda d: min(d.glob("test/*.tar")).unlink(), "test-000000.tar: missing"),
    "a missing index": (lambda d: min(d.glob("test/*.idx")).unlink(), "test-000000.idx: missing"),
    "a missing catalog": (lambda d: (d / "catalog.parquet").unlink(), "catalog.parquet: missing"),
    "a catalog cut short": (
        lambda d: (d / "catalog.parquet").write_bytes((d / "catalog.parquet").read_bytes()[:-9]),
        "catalog.parquet: not readable",
    ),
    "an extra file": (
        lambda d: shutil.copy(min(d.glob("train/*.tar")), d / "train/copy.tar"),
        "train/copy.tar: is no part of the dataset",
    ),
    "a shard cut short": (
        lambda d: (d / "train/train-000001.tar").write_bytes(
            (d / "train/train-000001.tar").read_bytes()[:-20_000]
        ),
        "train-000001.tar: has",
    ),
    "swapped shards": (
        lambda d: shutil.copy(d / "train/train-000000.tar", d / "train/train-000001.tar"),
        "is in the dataset 2 times",
    ),
    "counts that are off by one": (
        lambda d: change_column(d, "count", lambda counts: pc.add(counts, 1)),
        "catalog.parquet gives it another count",
    ),
    "a catalog that says otherwise of what is in no shard": (
        lambda d: change_column(d, "reason", lambda reasons: pa.nulls(len(reasons))),
        "catalog.parquet: its sha256 is not the one in dataset.json",
    ),
    "another number of samples": (
        lambda d: change_summary(d, lambda s: s["splits"]["test"].update(samples=1)),
        "test: its number of samples is not that of its shards",
    ),
    "other counts by class": (
        lambda d: change_summary(
            d, lambda s: s["splits"]["test"]["class_counts"].update({"0": 99})
        ),
        "test: its counts by class are not those of its shards",
    ),
    "other samples of a shard": (
        lambda d: change_summary(d, lambda s: s["splits"]["test"]["shards"][0].update(samples=3)),
        "test-000000.tar: its counts by class do not add up to its samples",
    ),
    "fewer classes": (
        lambda d: change_summary(d, lambda s: s.update(classes=[0, 1, 2, 3, 4])),
        "its classes are not the counts from 0 to 5",
    ),
    "classes in another order": (
        lambda d: change_summary(d, lambda s: s.update(classes=[5, 4, 3, 2, 1, 0])),
        "its classes are not the counts from 0 to 5",
    ),
    "a split that is not there": (
        lambda d: change_summary(d, lambda s: s["splits"].pop("test")),
        "its splits are not train, validation, test",
    ),
    "another catalog": (
        lambda d: change_column(d, "shard", without_first),
        "catalog.parquet does not place it here",
    ),
    "a catalog that names other shards": (
        lambda d: change_column(d, "shard", renumbered),
        "catalog.parquet: names a shard train/train-000009.tar that dataset.json does not",
    ),
    "a catalog in another order": (
        lambda d: change_column(d, "position", lambda positions: pc.subtract(9, positions)),
        "catalog.parquet places it elsewhere",
    ),
    "a table that is no catalog": (
        lambda d: pq.write_table(pa.table({"id": ["00001"]}), d / "catalog.parquet"),
        "catalog.parquet: not readable: has no column count",
    ),
    "a catalog with other types": (
        lambda d: write_with(d, "position", lambda positions: pa.array([[1]] * len(positions))),
        "catalog.parquet: not readable: Unsupported cast from list",
    ),
    "a missing page": (
        lambda d: (d / "README.md").unlink(),
        "README.md: missing",
    ),
    "a page that somebody has changed": (
        lambda d: (d / "README.md").write_bytes(b"changed"),
        "README.md: its sha256 is not the one in dataset.json",
    ),
}


def changed(folder: Path, name: str, change: Callable[[pa.ChunkedArray], Any]) -> pa.Table:
    """The catalog with one column changed."""
    table = read_catalog((folder / "catalog.parquet").read_bytes())
    return table.set_column(table.column_names.index(name), name, change(table[name]))


def change_column(folder: Path, name: str, change: Callable[[pa.ChunkedArray], Any]) -> None:
    (folder / "catalog.parquet").write_bytes(encode_catalog(changed(folder, name, change)))


def write_with(folder: Path, name: str, change: Callable[[pa.ChunkedArray], Any]) -> None:
    """As no catalog is written, whose columns have their types."""
    pq.write_table(changed(folder, name, change), folder / "catalog.parquet")


def without_first(column: pa.ChunkedArray) -> pa.Array:
    values = column.to_pylist()
    values[next(at for at, value in enumerate(values) if value is not None)] = None
    return pa.array(values, pa.string())


def renumbered(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.replace_substring(paths.cast(pa.string()), "000001", "000009")


def change_summary(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads((folder / "dataset.json").read_text())
    change(value)
    (folder / "dataset.json").write_text(json.dumps(value))


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(what: str, damaged: Path) -> None:
    damage, message = DAMAGE[what]
    damage(damaged)
    assert any(message in line for line in faults(damaged)), faults(damaged)


def test_the_command_exits_1_on_damage_and_0_without(damaged: Path, run: Command) -> None:
    assert run("sharding", "verify", damaged, "--decode").returncode == 0
    flip(min(damaged.glob("train/*.tar")), 5000)
    result = run("sharding", "verify", damaged)
    assert result.returncode == 1
    assert "train/train-000000.tar" in result.stderr
    assert "Traceback" not in result.stderr


def test_what_a_build_had_no_time_to_remove_is_no_damage(damaged: Path) -> None:
    for name in (".build/plan", ".build/train-000000.json", ".bintally-lock"):
        (damaged / name).parent.mkdir(exist_ok=True)
        (damaged / name).write_bytes(b"x")
    assert faults(damaged) == []
    (damaged / ".build/notes").write_bytes(b"x")
    assert faults(damaged) == [".build/notes: is no part of the dataset"]


def test_classes_may_be_names_that_the_json_holds(tmp_path: Path) -> None:
    names, builder = ["blue", "red"], TarBuilder()
    crcs = [
        builder.add(
            f"s{number}",
            [
                ("jpg", photo(number)),
                ("cls", b"%d" % (number % 2)),
                ("json", json.dumps({"label": names[number % 2]}).encode()),
            ],
        )
        for number in range(4)
    ]
    tar = b"".join(builder.finish())
    counts = dict.fromkeys(names, 2)
    sha256 = hashlib.sha256(tar).hexdigest()
    shard = Shard("train/train-000000.tar", "train/train-000000.idx", 4, len(tar), sha256, counts)
    catalog = encode_catalog(
        pa.table(
            {
                "id": [f"s{number}" for number in range(4)],
                "split": ["train"] * 4,
                "shard": [shard.path] * 4,
                "position": [*range(4)],
                "status": ["sharded"] * 4,
                "crc32": crcs,
                "label": names * 2,
            }
        )
    )
    nothing = Split(0, {}, [])
    splits = {"train": Split(4, counts, [shard]), "validation": nothing, "test": nothing}
    files = {"catalog.parquet": hashlib.sha256(catalog).hexdigest()}
    dataset = Dataset(names, 0, {}, {"max_count": 5}, splits, files, label="json:label")
    for path, data in {
        shard.path: tar,
        shard.index: format_index(builder.samples),
        "catalog.parquet": catalog,
        "dataset.json": dataset.to_json(),
    }.items():
        open_place(tmp_path).put(path, data)
    assert faults(tmp_path, decode=True) == []
    change_column(tmp_path, "label", lambda labels: pa.array([*reversed(labels.to_pylist())]))
    assert sum("gives it another count" in line for line in faults(tmp_path)) == 4


def test_a_tar_that_another_program_wrote_of_the_same_files_is_as_good(damaged: Path) -> None:
    shard = shards_of(damaged)[0]
    file = damaged / shard.path
    with tarfile.open(file) as tar:
        members = [(member.name, tar.extractfile(member)) for member in tar.getmembers()]
        files = [(name, opened.read()) for name, opened in members if opened is not None]
    data = tar_of(files)
    assert data != file.read_bytes()
    file.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    change_summary(damaged, lambda s: s["splits"]["train"]["shards"][0].update(sha256=sha256))
    assert faults(damaged) == []
