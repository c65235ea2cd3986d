"""Damage of a shard is found: by `verify`, which names it, and by a build, which makes it again."""

from __future__ import annotations

import shutil
from bisect import bisect_right
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bintally.dataset.index import parse_index
from bintally.storage.opening import open_place
from sharding.distribute import Processes
from sharding.integrity import find_damaged
from tests.sharding.test_verify import Backwards, faults, flip, shards_of


def to_make_again(place: Path | str) -> list[str]:
    """The paths of the shards that a build would make again."""
    shards = shards_of(place)
    damaged = find_damaged(open_place(place), shards, Backwards())
    assert damaged == [shard for shard in shards if shard in damaged]
    return [shard.path for shard in damaged]


@pytest.fixture(scope="module")
def mended(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the dataset; who damages it makes it whole again."""
    folder = tmp_path_factory.mktemp("mended") / "dataset"
    shutil.copytree(shards, folder)
    return folder


def test_a_whole_dataset_has_nothing_to_make_again(shards: Path) -> None:
    assert to_make_again(shards) == []


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_flipped_byte_anywhere_is_found_and_its_sample_named(
    mended: Path, data: st.DataObject
) -> None:
    shard = data.draw(st.sampled_from(shards_of(mended)))
    file = data.draw(st.sampled_from([mended / shard.path, mended / shard.index]))
    at = data.draw(st.integers(0, file.stat().st_size - 1))
    whole, samples = file.read_bytes(), parse_index((mended / shard.index).read_bytes())
    try:
        flip(file, at, data.draw(st.integers(1, 255)))
        found, again = faults(mended), to_make_again(mended)
    finally:
        file.write_bytes(whole)
    assert again == [shard.path]
    assert found
    assert all(line.startswith((shard.path, shard.index)) for line in found)
    if file.suffix == ".idx":
        assert found[0].startswith(f"{shard.index}: ")
        return
    assert found[0] == f"{shard.path}: its sha256 is not the one in dataset.json"
    last = samples[-1].components[-1]
    end = -(-(last.offset + last.size) // 512) * 512
    starts = [sample.components[0].offset - 512 for sample in samples] + [end]
    victims = [sample.id for sample in samples[bisect_right(starts, at) - 1 :][:1]]
    assert [line for line in found if "its bytes are not those" in line] == [
        f"{shard.path}: sample {id_}: its bytes are not those that were written" for id_ in victims
    ]


def test_a_build_makes_again_what_is_missing_or_changed_and_nothing_else(damaged: Path) -> None:
    shards = shards_of(damaged)
    (damaged / shards[4].path).unlink()
    (damaged / shards[3].index).unlink()
    shutil.copy(damaged / shards[0].index, damaged / shards[1].index)
    (damaged / shards[2].index).write_bytes(b"")
    assert to_make_again(damaged) == [shard.path for shard in shards[1:5]]
    (damaged / "catalog.parquet").unlink()
    # Of photos that could not be used, no shard was written.
    empty = replace(shards[0], path="train/train-000099.tar", samples=0)
    assert find_damaged(open_place(damaged), [empty, shards[0]], Processes(1)) == []


@pytest.mark.slow
def test_what_is_missing_on_s3_is_found_there(shards_on_s3: str) -> None:
    place = open_place(shards_on_s3)
    shards = shards_of(shards_on_s3)
    assert to_make_again(shards_on_s3) == []
    place.delete(shards[1].index)
    place.delete(shards[0].path)
    place.put(shards[-1].path, place.get(shards[2].path))
    wanted = [shards[0].path, shards[1].path, shards[-1].path]
    assert to_make_again(shards_on_s3) == wanted
