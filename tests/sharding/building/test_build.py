"""From a bucket to a dataset: complete, exact, and the same bytes however it was made."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bintally.dataset.index import parse_index
from bintally.dataset.manifest import SPLITS, read_dataset
from bintally.errors import UsageError, WorkError
from bintally.storage.folder import Folder
from bintally.storage.opening import open_place
from sharding.build import build
from sharding.distribute import Processes
from sharding.planning.options import Options
from tests.conftest import REPOSITORY, Command, contents
from tests.sharding.builds import dalis_own_reader

OPTIONS = Options(shard_samples=30)


def make(source: Path | str, folder: Path, *, workers: int = 1, options: Options = OPTIONS) -> Path:
    build(
        open_place(source),
        open_place(folder),
        options,
        distributor=Processes(workers),
        connections=8,
    )
    return folder


def catalog(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in pq.read_table(folder / "catalog.parquet").to_pylist()}


def true_counts(bucket: Path) -> dict[str, int]:
    """The count of every photo with readable metadata, by id."""
    counts = {}
    for path in (bucket / "metadata").iterdir():
        try:
            counts[path.stem] = json.loads(path.read_text())["EXPECTED_QUANTITY"]
        except ValueError:
            continue
    return counts


def samples_in_tars(folder: Path) -> dict[str, tuple[str, int, bytes]]:
    """(split, count, photo) of each sample, as plain tar sees them."""
    found: dict[str, tuple[str, int, bytes]] = {}
    for path in sorted(folder.glob("*/*.tar")):
        with tarfile.open(path) as tar:
            files = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
        for name, data in files.items():
            stem, _, extension = name.partition(".")
            if extension == "jpg":
                assert stem not in found, "a sample is in two shards"
                found[stem] = (path.parent.name, int(files[f"{stem}.cls"]), data)
                json.loads(files[f"{stem}.json"])
    return found


def test_every_good_photo_is_in_exactly_one_shard_with_its_count(
    bucket: Path, shards: Path
) -> None:
    counts = true_counts(bucket)
    rows = catalog(shards)
    samples = samples_in_tars(shards)
    expected = {
        id_
        for id_, count in counts.items()
        if 0 <= count <= 5 and rows[id_]["status"] not in ("quarantined", "orphan-metadata")
    }
    assert samples.keys() == expected
    for id_, (split, count, photo) in samples.items():
        assert count == counts[id_] == rows[id_]["count"]
        assert photo == (bucket / f"bin-images/{id_}.jpg").read_bytes()
        assert (rows[id_]["status"], rows[id_]["split"]) == ("sharded", split)
    assert Counter(row["status"] for row in rows.values())["quarantined"] == 4


def test_what_is_in_no_shard_is_in_the_catalog_with_its_reason(bucket: Path, shards: Path) -> None:
    rows = catalog(shards)
    images = {path.stem for path in (bucket / "bin-images").iterdir()}
    metadata = {path.stem for path in (bucket / "metadata").iterdir()}
    assert rows.keys() == images | metadata
    for id_, row in rows.items():
        assert (row["status"] == "sharded") == (row["reason"] is None)
        assert (row["shard"] is None) == (row["status"] != "sharded")
        assert (row["status"] == "orphan-image") == (id_ not in metadata)
        assert (row["status"] == "orphan-metadata") == (id_ not in images)
    reasons = sorted(row["reason"] for row in rows.values() if row["status"] == "quarantined")
    assert reasons == [
        "EXPECTED_QUANTITY is -1, below zero",
        "metadata is not JSON",
        "photo does not decode: Premature end of JPEG file",
        "photo has zero bytes",
    ]


def test_padded_and_unpadded_ids_are_samples_of_their_own(bucket: Path, shards: Path) -> None:
    samples, counts = samples_in_tars(shards), true_counts(bucket)
    both = [id_ for id_ in samples if id_.zfill(5) != id_ and id_.zfill(5) in counts]
    assert both, "the rendered bucket has such ids"
    for id_ in both:
        padded = bucket / f"bin-images/{id_.zfill(5)}.jpg"
        assert samples[id_][2] != padded.read_bytes()


def test_no_group_is_in_two_splits(shards: Path) -> None:
    splits: dict[str, set[str]] = {}
    for row in catalog(shards).values():
        if row["split"] is not None:
            splits.setdefault(row["group"], set()).add(row["split"])
    assert max(map(len, splits.values())) == 1
    assert len(splits) < len(samples_in_tars(shards)), "some groups have several photos"


def test_the_summary_agrees_with_the_shards(shards: Path) -> None:
    dataset = read_dataset(open_place(shards))
    samples = samples_in_tars(shards)
    assert list(dataset.classes) == [0, 1, 2, 3, 4, 5]
    for name in SPLITS:
        split = dataset.splits[name]
        own = Counter(str(count) for s, count, _ in samples.values() if s == name)
        assert {c: n for c, n in split.class_counts.items() if n} == own
        # A photo that turned out bad makes its shard one shorter.
        assert all(28 <= s.samples <= 30 for s in split.shards[:-1])
        assert sum(s.samples for s in split.shards) == split.samples == own.total()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_source_gives_the_same_bytes(
    workers: int, bucket: Path, shards: Path, tmp_path: Path
) -> None:
    assert contents(make(bucket, tmp_path / "made", workers=workers)) == contents(shards)


def test_the_same_source_on_s3_gives_the_same_bytes(
    bucket_on_s3: str, shards: Path, tmp_path: Path
) -> None:
    assert contents(make(bucket_on_s3, tmp_path / "made")) == contents(shards)


def test_a_dataset_can_be_written_to_s3(bucket: Path, shards: Path, s3: str, run: Command) -> None:
    place = open_place(f"{s3}/dataset")
    build(open_place(bucket), place, OPTIONS, distributor=Processes(1), connections=8)
    assert {e.path: place.get(e.path) for e in place.entries()} == contents(shards)
    run("sharding", "verify", f"{s3}/dataset", check=True)


def test_another_seed_gives_another_order_of_the_same_samples(
    bucket: Path, shards: Path, tmp_path: Path
) -> None:
    other = make(bucket, tmp_path / "other", options=Options(shard_samples=30, seed=1))
    mine, theirs = samples_in_tars(shards), samples_in_tars(other)
    assert mine.keys() == theirs.keys()
    assert list(mine) != list(theirs)


def test_a_second_build_of_a_complete_dataset_writes_nothing(bucket: Path, tmp_path: Path) -> None:
    folder = make(bucket, tmp_path / "made")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    make(bucket, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_an_interrupted_build_resumes_to_identical_bytes(
    bucket: Path, shards: Path, tmp_path: Path
) -> None:
    """Killed at random moments until it is done, with all that a kill can leave behind."""
    folder = tmp_path / "made"
    command = [sys.executable, "-m", "sharding", "build"]
    command += ["--source", str(bucket), "--output", str(folder)]
    command += ["--shard-samples", "30", "--workers", "2"]
    moments = random.Random(0)
    for _ in range(6):
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(moments.uniform(0.3, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (folder / "dataset.json").exists():
            break
        assert not (folder / "catalog.parquet").exists() or (folder / ".build").exists()
    assert subprocess.run(command, cwd=REPOSITORY, capture_output=True).returncode == 0
    assert contents(folder) == contents(shards)


class FailingFolder(Folder):
    """A folder that fails after some photos were read, and counts them."""

    photos_read = 0
    fails_after = sys.maxsize

    def get(self, path: str) -> bytes:
        if path.startswith("bin-images/"):
            self.photos_read += 1
            if self.photos_read > self.fails_after:
                raise WorkError(f"{path}: the disk is gone")
        return super().get(path)


def test_a_resumed_build_does_not_fetch_finished_shards_again(
    bucket: Path, shards: Path, tmp_path: Path
) -> None:
    source, destination = FailingFolder(bucket), open_place(tmp_path / "made")
    source.fails_after = 65  # in the third shard of 30
    with pytest.raises(WorkError, match="the disk is gone"):
        build(source, destination, OPTIONS, distributor=Processes(1), connections=1)
    assert not (tmp_path / "made/dataset.json").exists()
    planned = sum(row["shard"] is not None for row in catalog(shards).values()) + 2
    source.fails_after, source.photos_read = sys.maxsize, 0
    result = build(source, destination, OPTIONS, distributor=Processes(1), connections=1)
    assert result.resumed_shards == 2
    assert source.photos_read == planned - 60
    assert contents(tmp_path / "made") == contents(shards)


@pytest.mark.parametrize("split", SPLITS)
def test_webdataset_reads_the_shards(split: str, shards: Path) -> None:
    import webdataset as wds

    urls = [str(path) for path in sorted((shards / split).glob("*.tar"))]
    read = {
        sample["__key__"].rpartition("/")[2]: (split, int(sample["cls"]), sample["jpg"])
        for sample in wds.WebDataset(urls, shardshuffle=False)
    }
    assert read == {k: v for k, v in samples_in_tars(shards).items() if v[0] == split}


def test_dali_reads_the_shards_with_its_own_reader(shards: Path) -> None:
    expected = [v for v in samples_in_tars(shards).values() if v[0] == "train"]
    read = dalis_own_reader(sorted((shards / "train").glob("*.tar")))
    for (_, count, photo), (jpg, cls, metadata) in zip(expected, read, strict=False):
        assert jpg == photo
        assert int(cls) == count
        assert json.loads(metadata)["EXPECTED_QUANTITY"] == count


def test_the_index_is_what_dalis_own_tool_makes(shards: Path, tmp_path: Path) -> None:
    wds2idx = pytest.importorskip("wds2idx")
    tars = sorted(shards.glob("*/*.tar"))
    assert tars
    for tar in tars:
        with wds2idx.IndexCreator(str(tar), str(tmp_path / "idx"), verbose=False) as creator:
            creator.create_index()
        assert (tmp_path / "idx").read_bytes() == tar.with_suffix(".idx").read_bytes()


def test_gnu_tar_reads_the_shards(shards: Path) -> None:
    tar = min(shards.glob("train/*.tar"))
    listing = subprocess.run(
        ["tar", "--list", "--verbose", "--file", tar],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TZ": "UTC"},
    ).stdout.splitlines()
    names = [line.rpartition(" ")[2] for line in listing]
    assert names == [
        c.name for s in parse_index(tar.with_suffix(".idx").read_bytes()) for c in s.components
    ]
    assert all("1970-01-01 00:00" in line for line in listing)


def test_a_bucket_without_a_single_fitting_photo_is_a_usage_error(
    bucket: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    for folder, suffix in (("bin-images", "jpg"), ("metadata", "json")):
        (source / folder).mkdir(parents=True)
        shutil.copy(bucket / f"{folder}/00001.{suffix}", source / folder)
    metadata = source / "metadata/00001.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"EXPECTED_QUANTITY": 9}))
    with pytest.raises(UsageError, match="none of the 1 objects"):
        make(source, tmp_path / "made")


def test_files_that_are_no_samples_are_quarantined(bucket: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(bucket, source)
    photo, metadata = (source / "bin-images/00001.jpg", source / "metadata/00001.json")
    for strange in ("a b", "x.y", "é"):
        shutil.copy(photo, source / f"bin-images/{strange}.jpg")
        shutil.copy(metadata, source / f"metadata/{strange}.json")
    (source / "bin-images/README").write_text("hello")
    (source / "bin-images/deeper").mkdir()
    shutil.copy(photo, source / "bin-images/deeper/1.jpg")
    rows = catalog(make(source, tmp_path / "made"))
    for id_ in ("a b", "x.y", "é", "bin-images/README", "bin-images/deeper/1.jpg"):
        assert rows[id_]["status"] == "quarantined"
        assert rows[id_]["reason"]
    assert rows["00001"]["status"] == "sharded"


def test_arrow_does_not_bring_pandas_along_and_still_takes_its_columns() -> None:
    code = (
        "import sys\n"
        "from sharding.columns import prepare_arrow\n"
        "prepare_arrow()\n"
        "import pyarrow as pa\n"
        "pa.array([1])\n"
        "assert 'pandas' not in sys.modules\n"
        "import pandas as pd\n"
        "assert pa.array(pd.Series([1, 2])).to_pandas().tolist() == [1, 2]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
