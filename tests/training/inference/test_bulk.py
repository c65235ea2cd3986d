"""Counting many photos: exact, resumable, the same on Ray."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bintally.counting.checkpoint import read_checkpoint
from bintally.counting.decision import Decision
from bintally.dataset.manifest import read_dataset
from bintally.dataset.samples import Samples
from bintally.device import precision_type
from bintally.errors import UsageError
from bintally.loading.engines import make_engine
from bintally.storage.opening import open_place
from tests.conftest import REPOSITORY, Command, copy
from tests.ray_nodes import ray_cluster
from tests.training.runs import settings
from training.evaluate import evaluate
from training.fit import fit
from training.inference import bulk
from training.inference.bulk import BulkJob, PlacePhotos, SplitPhotos, predict_bulk
from training.launch.distributed import joined


@pytest.fixture(scope="module")
def checkpoint(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    fit(settings(shards, run, epochs=1, precision="auto"))
    return run / "best.pt"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "PART", 20)


def job(checkpoint: Path, source: SplitPhotos | PlacePhotos) -> BulkJob:
    return BulkJob(checkpoint, source, "cpu", "cpu", "auto")


def rows(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return found


def test_a_split_is_counted_as_evaluate_counts_it(
    checkpoint: Path, shards: Path, tmp_path: Path
) -> None:
    output = tmp_path / "counts.parquet"
    samples = Samples(open_place(shards), read_dataset(open_place(shards)), "train")
    assert predict_bulk(job(checkpoint, SplitPhotos(str(shards), "train")), output) == (
        len(samples),
        0,
    )
    loaded, _ = read_checkpoint(checkpoint)
    model, preprocessing = loaded.build()
    with joined("cpu") as process:
        evaluation = evaluate(
            model,
            samples,
            range(6),
            make_engine("cpu", preprocessing, process.device, 128),
            process,
            batch_size=128,
            precision=precision_type("auto", process.device),
        )
    evaluation = replace(evaluation, decision=Decision.from_dict(loaded.decision))
    found = rows(output)
    assert [row["id"] for row in found] == samples.ids
    assert [row["label"] for row in found] == evaluation.labels.tolist()
    assert [row["count"] for row in found] == evaluation.predicted(range(6)).tolist()
    for row, probabilities in zip(found, evaluation.probabilities, strict=True):
        answered = [row[f"probability_{count}"] for count in range(6)]
        # The last bits depend, on some CPUs, on how many photos are computed together.
        assert answered == pytest.approx(probabilities, abs=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["counts.parquet"], "nothing is left"


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(
    checkpoint: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = job(checkpoint, SplitPhotos(str(shards), "train"))
    whole, output = tmp_path / "whole.parquet", tmp_path / "output.parquet"
    predict_bulk(source, whole)
    counted: list[int] = []
    real = bulk.count_part

    def count_part(job: BulkJob, begin: int, end: int) -> bytes:
        if len(counted) == 2:
            raise KeyboardInterrupt
        counted.append(begin)
        return real(job, begin, end)

    monkeypatch.setattr(bulk, "count_part", count_part)
    with pytest.raises(KeyboardInterrupt):
        predict_bulk(source, output)
    assert not output.exists()

    def count_rest(job: BulkJob, begin: int, end: int) -> bytes:
        counted.append(begin)
        return real(job, begin, end)

    monkeypatch.setattr(bulk, "count_part", count_rest)
    predict_bulk(source, output)
    assert output.read_bytes() == whole.read_bytes()
    assert counted == sorted(set(counted)), "no part is counted twice"


def test_shards_on_s3_are_counted_with_a_cache_and_without(
    checkpoint: Path, shards: Path, tmp_path: Path, s3: str
) -> None:
    copy(open_place(shards), open_place(f"{s3}/shards"))
    predict_bulk(job(checkpoint, SplitPhotos(str(shards), "test")), tmp_path / "folder.parquet")
    for name, source in {
        "s3": SplitPhotos(f"{s3}/shards", "test"),
        "cached": SplitPhotos(f"{s3}/shards", "test", tmp_path / "cache"),
    }.items():
        predict_bulk(job(checkpoint, source), tmp_path / name)
        assert rows(tmp_path / name) == rows(tmp_path / "folder.parquet")


def test_a_folder_where_parts_would_go_is_kept(
    checkpoint: Path, shards: Path, tmp_path: Path
) -> None:
    for name in ("mine.txt", "000000000.parquet"):
        output = tmp_path / f"{name}-output"
        mine = tmp_path / f"{output.name}.parts" / name
        mine.parent.mkdir()
        mine.write_text("mine")
        with pytest.raises(UsageError, match="none of our parts"):
            predict_bulk(job(checkpoint, SplitPhotos(str(shards), "test")), output)
        assert mine.read_text() == "mine"


def test_a_file_of_somebody_elses_is_kept(checkpoint: Path, shards: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.pt"
    shutil.copy(checkpoint, mine)
    with pytest.raises(UsageError, match=r"--output .*mine\.pt: is no table of counts, and stays"):
        predict_bulk(job(checkpoint, SplitPhotos(str(shards), "test")), mine)
    assert mine.read_bytes() == checkpoint.read_bytes()
    assert [*tmp_path.iterdir()] == [mine]


def test_parts_of_another_job_are_not_taken(
    checkpoint: Path, shards: Path, bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "counts.parquet"
    monkeypatch.setattr(bulk, "_join", lambda *a: pytest.fail("as far as it came"))
    with pytest.raises(pytest.fail.Exception):
        predict_bulk(job(checkpoint, SplitPhotos(str(shards), "test")), output)
    monkeypatch.undo()
    predict_bulk(job(checkpoint, SplitPhotos(str(shards), "validation")), output)
    ids = Samples(open_place(shards), read_dataset(open_place(shards)), "validation").ids
    assert [row["id"] for row in rows(output)] == ids
    predict_bulk(job(checkpoint, SplitPhotos(str(shards), "test")), output)
    assert [row["id"] for row in rows(output)] != ids, "a table of ours is replaced"


def test_a_place_of_photos_gives_a_row_for_each(
    checkpoint: Path, bucket: Path, tmp_path: Path, s3: str
) -> None:
    folder = tmp_path / "photos"
    for i in range(1, 31):
        name = f"{i:05d}.jpg"
        open_place(folder).put(name, (bucket / "bin-images" / name).read_bytes())
    open_place(folder).put("bad.jpg", b"\xff\xd8 no photo")
    open_place(folder).put("notes.txt", b"no photo either")
    copy(open_place(folder), open_place(f"{s3}/photos"))
    local, remote = tmp_path / "local.parquet", tmp_path / "remote.parquet"
    photos, failed = predict_bulk(job(checkpoint, PlacePhotos(str(folder))), local)
    assert photos == 31
    found = {row["id"]: row for row in rows(local)}
    assert failed == sum(row["error"] is not None for row in found.values()) >= 1
    assert found["bad.jpg"]["count"] is None
    assert all((row["count"] is None) == (row["error"] is not None) for row in found.values())
    predict_bulk(job(checkpoint, PlacePhotos(f"{s3}/photos")), remote)
    assert rows(remote) == rows(local)


@pytest.mark.slow
def test_the_command(checkpoint: Path, shards: Path, tmp_path: Path, run: Command) -> None:
    output = tmp_path / "counts.parquet"
    predict: list[object] = ["training", "predict", "--checkpoint", checkpoint]
    done = run(*predict, "--shards", shards, "--split", "test", "--output", output)
    assert done.returncode == 0, done.stderr
    assert len(rows(output)) == read_dataset(open_place(shards)).splits["test"].samples
    for wrong, words in [
        ([], "name photos"),
        (["x.jpg", "--photos", tmp_path], "one of the three"),
        (["--photos", tmp_path], "--output goes with"),
        (["--photos", tmp_path / "none", "--output", output], "no such folder"),
        (["--shards", shards, "--output", output, "--ray", "127.0.0.1:9"], "no Ray cluster"),
    ]:
        result = run(*predict, *wrong)
        assert result.returncode == 2, wrong
        assert words in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_nodes_of_ray_give_the_same_bytes_and_so_does_the_one_that_is_left(
    checkpoint: Path, bucket: Path, tmp_path: Path
) -> None:
    """Of as many photos as make three parts."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in (bucket / "bin-images").iterdir():
        for i in range(32):
            os.link(path, photos / f"{i}-{path.name}")
    predict = [sys.executable, "-m", "training", "predict", "--checkpoint", str(checkpoint)]
    predict += ["--photos", str(photos), "--output"]
    here, there, lossy = (str(tmp_path / name) for name in ("here", "there", "lossy"))
    # The rendered bucket has damaged photos, which make it 1.
    assert subprocess.run([*predict, here], cwd=REPOSITORY).returncode == 1
    with ray_cluster(2) as cluster:

        def start(output: str) -> subprocess.Popen[bytes]:
            command = [*predict, output, "--ray", cluster.address]
            return subprocess.Popen(command, cwd=REPOSITORY, env=cluster.environment)

        counting = start(there)
        helped: set[int] = set()
        while counting.poll() is None:
            helped |= {i for i, node in enumerate(cluster.nodes) if node.runs("ray::_run")}
            time.sleep(0.1)
        assert (counting.returncode, helped) == (1, {0, 1})
        counting = start(lossy)
        while not cluster.nodes[1].runs("ray::_run") and counting.poll() is None:
            time.sleep(0.1)
        cluster.nodes[1].kill()
        assert counting.wait(200) == 1
    assert pq.read_metadata(here).num_rows > 2 * 2048
    assert Path(there).read_bytes() == Path(lossy).read_bytes() == Path(here).read_bytes()
