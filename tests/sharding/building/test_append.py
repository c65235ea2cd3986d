"""A dataset that grows: what is there stays, byte for byte; what is new is added, or told why."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from bintally.dataset.manifest import read_dataset
from bintally.errors import UsageError
from bintally.loading.loader import Loader
from bintally.storage.opening import open_place
from sharding.build import Result, build
from sharding.distribute import Processes
from sharding.planning.options import Options
from tests.conftest import REPOSITORY, Command, contents

OPTIONS = Options(shard_samples=20)


def make(source: Path, folder: Path, *, append: bool = False, options: Options = OPTIONS) -> Result:
    place = open_place(folder)
    how: dict[str, Any] = {"distributor": Processes(1), "connections": 8, "append": append}
    return build(open_place(source), place, options, **how)


def splits(folder: Path) -> dict[str, str]:
    rows = pq.read_table(folder / "catalog.parquet", columns=["id", "split"]).to_pylist()
    return {row["id"]: row["split"] for row in rows if row["split"] is not None}


def take(bucket: Path, grown: Path, ids: list[str]) -> None:
    for id_ in ids:
        for path in (f"bin-images/{id_}.jpg", f"metadata/{id_}.json"):
            (grown / path).parent.mkdir(parents=True, exist_ok=True)
            if (bucket / path).exists():
                shutil.copy2(bucket / path, grown / path)


@pytest.fixture
def halves(bucket: Path) -> tuple[list[str], list[str]]:
    """The rendered bucket's ids, in two parts that have neighbours in each other."""
    ids = sorted({path.stem for path in bucket.rglob("*.*")})
    first = sorted(random.Random(0).sample(ids, len(ids) * 2 // 3))
    return first, sorted({*ids} - {*first})


def shard_files(folder: Path) -> dict[str, bytes]:
    return {p: d for p, d in contents(folder).items() if p.endswith((".tar", ".idx"))}


def test_what_is_there_stays_and_what_is_new_is_added(
    bucket: Path, halves: tuple[list[str], list[str]], tmp_path: Path, run: Command
) -> None:
    grown, folder = tmp_path / "bucket", tmp_path / "made"
    take(bucket, grown, halves[0])
    make(grown, folder)
    files, before = shard_files(folder), splits(folder)
    take(bucket, grown, halves[1])
    with pytest.raises(UsageError, match="add what is new with --append"):
        make(grown, folder)
    result = make(grown, folder, append=True)
    after = splits(folder)
    assert files.items() <= shard_files(folder).items()
    assert before.items() < after.items()
    assert result.leaks[0] == 0
    assert run("sharding", "verify", str(folder), "--decode").returncode == 0
    assert read_dataset(folder).splits["train"].samples == list(after.values()).count("train")
    seen = [id_ for batch in Loader(folder, split="train", batch_size=1) for id_ in batch.ids]
    assert sorted(seen) == sorted(id_ for id_, split in after.items() if split == "train")
    whole = contents(folder)
    assert make(grown, folder, append=True).was_complete
    assert make(grown, folder).was_complete, "the same build knows the dataset as its own"
    assert contents(folder) == whole
    # A shard that is lost is made again, of those that were there and of those that were added.
    for shard in (read_dataset(folder).shards[0], read_dataset(folder).shards[-1]):
        (folder / shard.path).unlink()
    make(grown, folder)
    assert contents(folder) == whole


def test_a_photo_that_was_bad_and_has_become_good_is_taken_in(
    bucket: Path, shards: Path, halves: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    grown, folder = tmp_path / "bucket", tmp_path / "made"
    take(bucket, grown, halves[0])
    good = next(id_ for id_ in splits(shards) if id_ in halves[0])
    photo = grown / f"bin-images/{good}.jpg"
    data = photo.read_bytes()
    photo.write_bytes(data[: len(data) // 2])
    make(grown, folder)
    assert good not in splits(folder)
    photo.write_bytes(data)
    make(grown, folder, append=True)
    assert good in splits(folder)


def test_what_left_the_source_stays_in_the_dataset(
    bucket: Path, halves: tuple[list[str], list[str]], tmp_path: Path, run: Command
) -> None:
    grown, folder = tmp_path / "bucket", tmp_path / "made"
    take(bucket, grown, halves[0])
    make(grown, folder)
    before = splits(folder)
    for id_ in [*before][::3]:
        (grown / f"bin-images/{id_}.jpg").unlink()
        (grown / f"metadata/{id_}.json").unlink()
    take(bucket, grown, halves[1][::2])
    make(grown, folder, append=True)
    assert before.items() < splits(folder).items()
    assert run("sharding", "verify", str(folder), "--decode").returncode == 0


def test_appending_to_nothing_or_with_other_options_is_refused(
    bucket: Path, shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no complete dataset to append to"):
        make(bucket, tmp_path / "made", append=True)
    copied = tmp_path / "copied"
    shutil.copytree(shards, copied)
    with pytest.raises(UsageError, match=r"--shard-samples 20 \(it was 30\)"):
        make(bucket, copied, append=True)
    assert contents(copied) == contents(shards)


@pytest.mark.slow
def test_an_append_killed_anywhere_goes_on_to_the_same_bytes(
    bucket: Path, halves: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    draw = random.Random(0)
    grown = tmp_path / "bucket"
    take(bucket, grown, halves[0])
    make(grown, tmp_path / "before")
    take(bucket, grown, halves[1])
    shutil.copytree(tmp_path / "before", tmp_path / "whole")
    words = ["build", "--source", str(grown), "--shard-samples", "20", "--workers", "1", "--append"]

    def append(folder: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "sharding", *words, "--output", str(folder)]
        return subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True)

    began = time.monotonic()
    assert append(tmp_path / "whole").wait() == 0
    whole_s = time.monotonic() - began
    whole = contents(tmp_path / "whole")
    killed = 0
    for attempt in range(10):
        folder = tmp_path / f"killed-{attempt}"
        shutil.copytree(tmp_path / "before", folder)
        process = append(folder)
        try:
            process.wait(whole_s * draw.uniform(0.2, 1.0))
        except subprocess.TimeoutExpired:
            killed += 1
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert read_dataset(folder).shards, "it is a dataset all the time"
        make(grown, folder, append=True)
        assert contents(folder) == whole
    assert killed


@pytest.mark.slow
def test_one_photo_then_a_thousand_join_twenty_thousand(tmp_path: Path) -> None:
    grown, folder = tmp_path / "bucket", tmp_path / "made"
    sink = io.BytesIO()
    Image.new("RGB", (8, 8)).save(sink, "JPEG")
    draw = random.Random(1)
    ids = draw.sample(range(1, 21_002), 21_001)
    products = {n: [f"P{n // draw.choice((1, 2, 3))}"] for n in range(1, 21_002)}
    for name in ("bin-images", "metadata"):
        (grown / name).mkdir(parents=True)

    def add(numbers: list[int]) -> None:
        for n in numbers:
            count = 1 + n % 5
            skus = ", ".join(f'"{sku}": {{}}' for sku in products[n])
            text = f'{{"BIN_FCSKU_DATA": {{{skus}}}, "EXPECTED_QUANTITY": {count}}}'
            (grown / f"bin-images/{n:05d}.jpg").write_bytes(sink.getvalue())
            (grown / f"metadata/{n:05d}.json").write_text(text)

    options = Options(shard_samples=1000)
    add(ids[:20_000])
    make(grown, folder, options=options)
    for more in (ids[20_000:20_001], ids[20_001:]):
        files, before = shard_files(folder), splits(folder)
        add(more)
        result = make(grown, folder, append=True, options=options)
        assert before.items() < splits(folder).items()
        assert files.items() < shard_files(folder).items()
        assert result.leaks[0] == 0
    assert len(splits(folder)) > 20_900
