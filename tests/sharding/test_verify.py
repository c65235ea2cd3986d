"""`verify` finds whatever is not as it was written."""

from __future__ import annotations

import bisect
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bintally.dataset.catalog import CatalogRow, format_catalog, parse_catalog
from bintally.dataset.index import parse_index
from bintally.storage.opening import open_place
from sharding.verify import verify
from tests.conftest import Command


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, to be damaged."""
    shutil.copytree(shards, tmp_path / "dataset")
    return tmp_path / "dataset"


def faults(folder: Path, *, decode: bool = False) -> list[str]:
    return verify(open_place(folder), decode=decode)[1]


def test_a_whole_dataset_has_no_faults(shards: Path) -> None:
    assert faults(shards, decode=True) == []


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_anywhere_is_found_and_its_sample_named(damaged: Path) -> None:
    tar = min(damaged.glob("validation/*.tar"))
    index = tar.with_suffix(".idx")
    whole, draw = tar.read_bytes(), random.Random(0)
    samples = parse_index(index.read_bytes())
    starts = [sample.components[0].offset - 512 for sample in samples]
    last = samples[-1].components[-1]
    end = -(-(last.offset + last.size) // 512) * 512
    for _ in range(60):
        at = draw.randrange(end)
        flip(tar, at)
        victim = samples[bisect.bisect_right(starts, at) - 1].id
        named = [line for line in faults(damaged) if "its bytes are not those" in line]
        assert named == [
            f"validation/validation-000000.tar: sample {victim}: "
            "its bytes are not those that were written"
        ]
        tar.write_bytes(whole)
    flip(tar, end + 700)  # in the empty blocks that end a tar
    assert faults(damaged) == [
        "validation/validation-000000.tar: its sha256 is not the one in dataset.json"
    ]
    tar.write_bytes(whole)
    for at in range(0, index.stat().st_size, 97):
        flip(index, at)
        assert any(line.startswith("validation/validation-000000.idx") for line in faults(damaged))
        flip(index, at)


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
        lambda d: change_rows(d, add_one),
        "catalog.parquet gives it another count",
    ),
    "a catalog that says otherwise of what is in no shard": (
        lambda d: change_rows(d, give_no_reason),
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
        lambda d: (d / "catalog.parquet").write_bytes(_catalog_without_first_sample(d)),
        "catalog.parquet does not place it here",
    ),
}


def add_one(row: CatalogRow) -> None:
    row.count = None if row.count is None else row.count + 1


def give_no_reason(row: CatalogRow) -> None:
    row.reason = None


def change_rows(folder: Path, change: Callable[[CatalogRow], object]) -> None:
    rows = parse_catalog((folder / "catalog.parquet").read_bytes())
    for row in rows:
        change(row)
    (folder / "catalog.parquet").write_bytes(format_catalog(rows))


def change_summary(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads((folder / "dataset.json").read_text())
    change(value)
    (folder / "dataset.json").write_text(json.dumps(value))


def _catalog_without_first_sample(folder: Path) -> bytes:
    rows = parse_catalog((folder / "catalog.parquet").read_bytes())
    first = next(row for row in rows if row.status == "sharded")
    first.put_aside("excluded", "by a test")
    return format_catalog(rows)


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
