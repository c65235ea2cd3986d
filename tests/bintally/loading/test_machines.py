"""Machines that train together: each fetches its own lanes, and together they see every sample."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bintally
from bintally.dataset.index import format_index
from bintally.dataset.manifest import DATASET, Dataset, Shard, Split
from bintally.storage.opening import open_place
from sharding.tar import TarBuilder
from tests.bintally.loading.test_batches import open_samples
from tests.conftest import REPOSITORY, copy

NUM_SHARDS = 64
BATCH_SIZE = 24


@pytest.fixture(scope="module")
def many_shards(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 64 shards of about six photos."""
    photos = open_samples(shards)
    folder = tmp_path_factory.mktemp("many") / "dataset"
    place = open_place(folder)
    written = []
    for number in range(NUM_SHARDS):
        tar = TarBuilder()
        for row in range(5 + number % 3):
            photo = photos.photo((number * 7 + row) % len(photos)).tobytes()
            tar.add(f"{number:03d}-{row}", [("jpg", photo), ("cls", b"3"), ("json", b"{}")])
        data = b"".join(tar.finish())
        path, index = (f"train/train-{number:06d}.{suffix}" for suffix in ("tar", "idx"))
        place.put(path, data)
        place.put(index, format_index(tar.samples))
        sha256, counts = hashlib.sha256(data).hexdigest(), {"3": len(tar.samples)}
        written.append(Shard(path, index, len(tar.samples), len(data), sha256, counts))
    samples = sum(shard.samples for shard in written)
    split = Split(samples, {str(count): samples * (count == 3) for count in range(6)}, written)
    place.put(DATASET, Dataset([*range(6)], 0, {}, {}, {"train": split}).to_json())
    return folder


Open = Callable[..., bintally.Loader]


@pytest.fixture
def open_loader(monkeypatch: pytest.MonkeyPatch) -> Open:
    """A loader as torchrun's processes have it: of rank `rank` of so many, some to a machine."""

    def opened(source: str, rank: int, world: int, here: int = 1, **more: Any) -> bintally.Loader:
        for name, value in {
            "RANK": rank,
            "WORLD_SIZE": world,
            "LOCAL_RANK": rank % here,
            "LOCAL_WORLD_SIZE": here,
            "GROUP_WORLD_SIZE": world // here,
        }.items():
            monkeypatch.setenv(name, str(value))
        more = {"batch_size": BATCH_SIZE, "image_size": 16, "seed": 3} | more
        return bintally.Loader(source, **more)

    return opened


def steps_of(loaders: list[bintally.Loader]) -> list[set[str]]:
    """The ids of each step that is left of an epoch, those of all ranks together."""
    parts = [[batch.ids for batch in loader] for loader in loaders]
    steps = [[id_ for part in step for id_ in part] for step in zip(*parts, strict=True)]
    assert all(len(step) == BATCH_SIZE == len({*step}) for step in steps)
    return [{*step} for step in steps]


def test_machines_fetch_their_share_and_see_the_same_steps(
    many_shards: Path, s3: str, open_loader: Open, tmp_path: Path
) -> None:
    copy(open_place(many_shards), open_place(f"{s3}/many"))
    total = sum(s.bytes for s in bintally.read_dataset(many_shards).splits["train"].shards)
    alone = steps_of([open_loader(str(many_shards), 0, 1)])
    for machines in (1, 2, 4, 8):
        caches = [tmp_path / f"{machines}-{machine}" for machine in range(machines)]
        loaders = [
            open_loader(f"{s3}/many", machine, machines, cache=cache)
            for machine, cache in enumerate(caches)
        ]
        assert steps_of(loaders) == alone
        for cache in caches:
            fetched = sum(path.stat().st_size for path in cache.glob("*.tar"))
            assert fetched <= 1.15 * total / machines


@pytest.mark.slow
def test_a_machines_ranks_share_what_it_fetches(
    many_shards: Path, s3: str, open_loader: Open, tmp_path: Path
) -> None:
    copy(open_place(many_shards), open_place(f"{s3}/many"))
    loaders = [
        open_loader(f"{s3}/many", rank, 4, here=2, cache=tmp_path / str(rank // 2))
        for rank in range(4)
    ]
    assert steps_of(loaders) == steps_of([open_loader(str(many_shards), 0, 1)])
    files = [{path.name for path in (tmp_path / m).glob("*.tar")} for m in ("0", "1")]
    assert len(files[0] | files[1]) == NUM_SHARDS
    assert len(files[0] & files[1]) <= 8, "a shard in which a lane ends and another begins"


def test_machines_with_unequal_numbers_of_ranks_see_the_same_steps(
    many_shards: Path, monkeypatch: pytest.MonkeyPatch, open_loader: Open
) -> None:
    alone = steps_of([open_loader(str(many_shards), 0, 1)])
    loaders = []
    for rank, local_rank, here in ((0, 0, 2), (1, 1, 2), (2, 0, 1)):
        for name, value in {
            "RANK": rank,
            "WORLD_SIZE": 3,
            "LOCAL_RANK": local_rank,
            "LOCAL_WORLD_SIZE": here,
            "GROUP_WORLD_SIZE": 2,
        }.items():
            monkeypatch.setenv(name, str(value))
        loaders.append(bintally.Loader(many_shards, batch_size=BATCH_SIZE, image_size=16, seed=3))
    assert steps_of(loaders) == alone


def test_a_slow_folder_is_staged_as_s3_is(
    many_shards: Path, open_loader: Open, tmp_path: Path
) -> None:
    staged = open_loader(str(many_shards), 0, 1, cache=tmp_path / "cache")
    assert steps_of([staged]) == steps_of([open_loader(str(many_shards), 0, 1)])
    shards = bintally.read_dataset(many_shards).splits["train"].shards
    assert {path.stem for path in (tmp_path / "cache").glob("*.tar")} == {s.sha256 for s in shards}


@pytest.mark.slow
def test_an_epoch_goes_on_elsewhere_and_on_another_number_of_machines(
    many_shards: Path, s3: str, open_loader: Open, tmp_path: Path
) -> None:
    copy(open_place(many_shards), open_place(f"{s3}/many"))
    uninterrupted = steps_of([open_loader(str(many_shards), 0, 1)])
    seen: list[set[str]] = []
    state: dict[str, Any] | None = None
    for source, machines, here, number in (
        (f"{s3}/many", 2, 1, 4),
        (str(many_shards), 3, 1, 3),
        (f"{s3}/many", 4, 2, 2),
        (str(many_shards), 1, 1, len(uninterrupted)),
    ):
        more = {"cache": tmp_path / str(len(seen))} if "://" in source else {}
        loaders = [
            open_loader(source, rank, machines * here, here, **more)
            for rank in range(machines * here)
        ]
        steps: list[set[str]] = [set() for _ in range(min(number, len(uninterrupted) - len(seen)))]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(state)
            for step, batch in zip(steps, loader, strict=False):
                step |= {*batch.ids}
                after = loader.state_dict()
        state, seen = after, seen + steps
    assert seen == uninterrupted


SCRIPT = """
import json, sys, bintally
loader = bintally.Loader(sys.argv[1], batch_size=24, image_size=16, seed=3, cache=sys.argv[2])
json.dump([batch.ids for batch in loader], open(f"{sys.argv[3]}.{loader.order.rank}", "w"))
"""


@pytest.mark.slow
def test_under_torchrun_each_machine_fetches_half(
    many_shards: Path, s3: str, open_loader: Open, tmp_path: Path
) -> None:
    copy(open_place(many_shards), open_place(f"{s3}/many"))
    script = tmp_path / "loop.py"
    script.write_text(SCRIPT)
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2"),
                *("--nproc-per-node=2", f"--node-rank={node}", "--rdzv-backend=c10d"),
                *("--rdzv-endpoint=localhost:29411", "--rdzv-id=machines", str(script)),
                *(f"{s3}/many", str(tmp_path / f"cache{node}"), str(tmp_path / "ids")),
            ],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        for node in range(2)
    ]
    assert [node.wait(timeout=300) for node in nodes] == [0, 0]
    parts = [json.loads((tmp_path / f"ids.{rank}").read_text()) for rank in range(4)]
    steps = [{id_ for part in step for id_ in part} for step in zip(*parts, strict=True)]
    assert steps == steps_of([open_loader(str(many_shards), 0, 1)])
    total = sum(s.bytes for s in bintally.read_dataset(many_shards).splits["train"].shards)
    for node in range(2):
        fetched = sum(p.stat().st_size for p in (tmp_path / f"cache{node}").glob("*.tar"))
        assert fetched <= 1.15 * total / 2
