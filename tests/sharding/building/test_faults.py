"""A bucket behind a failing S3, killed builds, lost nodes: nothing lost, nothing doubled."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

import bintally.storage.s3.prefix
from bintally.storage.folder import Folder
from bintally.storage.opening import open_place
from bintally.storage.s3.rate_limiter import RateLimiter
from sharding.build import build
from sharding.distribute import Processes
from sharding.planning.options import Options
from sharding.source.layout import read_source
from sharding.source.rows import SourceRows
from tests.conftest import REPOSITORY, contents
from tests.ray_nodes import ray_cluster
from tests.sharding.builds import catalog_rows
from tests.sharding.faulty_s3 import faulty_proxy

OPTIONS = Options(shard_samples=30)


def test_a_failing_s3_changes_no_byte(
    bucket_on_s3: str,
    shards: Path,
    s3_endpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five percent 503, one percent each of short bodies, stalls and resets, and then some."""
    monkeypatch.setattr(bintally.storage.s3.prefix, "READ_TIMEOUT", "1s")
    monkeypatch.setenv("BINTALLY_CACHE", str(tmp_path / "cache"))
    rates = {"slow-down": 0.05, "short": 0.02, "stall": 0.02, "reset": 0.02}
    with faulty_proxy(s3_endpoint, rates, stall_s=3) as (endpoint, made):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        source, destination = open_place(bucket_on_s3), open_place(tmp_path / "made")
        build(source, destination, OPTIONS, distributor=Processes(1), connections=8)
    assert set(made) == set(rates), "every kind of fault was made"
    assert contents(tmp_path / "made") == contents(shards)


def test_the_pace_halves_when_the_server_pushes_back_and_recovers() -> None:
    pace = RateLimiter(64.0)
    with pace:
        pass
    assert pace.limit == 64
    for _ in range(3):  # Many at once count once.
        pace.slow_down()
    slowed = pace.limit
    assert slowed <= 32
    for _ in range(5000):
        with pace:
            pass
    assert slowed < pace.limit <= 64


def counts_of(source: SourceRows) -> dict[str, int]:
    """The count of each row, by id."""
    columns = (source.table[name].to_pylist() for name in ("id", "count"))
    return dict(zip(*columns, strict=True))


def test_metadata_is_fetched_once_for_any_number_of_builds(
    bucket_on_s3: str, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BINTALLY_CACHE", str(tmp_path / "cache"))
    first = read_source(open_place(bucket_on_s3), OPTIONS, Processes(1), 8)
    with faulty_proxy(s3_endpoint, {"reads": 0.0}, stall_s=0) as (endpoint, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        # A place that can list and can fetch nothing: what is read now was kept.
        source = open_place(bucket_on_s3)
        monkeypatch.setattr(type(source), "fetch", None)
        again = read_source(source, OPTIONS, Processes(1), 8)
        assert again.table.equals(first.table)
        assert again.source == first.source
        sharded = pc.equal(again.table["status"], "sharded").to_numpy()
        own = again.json.take(np.flatnonzero(sharded)[:3])
        assert all(json.loads(own.get(number)) for number in range(3))


def test_a_build_fetches_each_object_once_whatever_its_versions_prove(
    bucket: Path, shards: Path, tmp_path: Path
) -> None:
    fetched = Counter[str]()

    class Counting(Folder):
        def get(self, path: str) -> bytes:
            fetched[path] += 1
            return super().get(path)

    source, destination = Counting(bucket), open_place(tmp_path / "made")
    build(source, destination, OPTIONS, distributor=Processes(1), connections=4)
    assert contents(tmp_path / "made") == contents(shards)
    assert {*fetched.values()} == {1}


@pytest.mark.slow
def test_metadata_that_changed_is_fetched_again(
    bucket_on_s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setenv("BINTALLY_CACHE", str(tmp_path / "cache"))
    place = open_place(bucket_on_s3)
    before = read_source(place, OPTIONS, Processes(1), 4)
    value = json.loads(place.get("metadata/00001.json")) | {"EXPECTED_QUANTITY": 4}
    place.put("metadata/00001.json", json.dumps(value, indent=4).encode())
    after = counts_of(read_source(place, OPTIONS, Processes(1), 4))
    assert after["00001"] == 4
    del after["00001"]
    assert after.items() <= counts_of(before).items()
    # A file of the cache that was damaged is replaced, not believed.
    kept = [*(tmp_path / "cache/metadata").iterdir()]
    assert kept
    for file in kept:
        file.write_bytes(file.read_bytes()[:100])
    first, second = (read_source(place, OPTIONS, Processes(1), 4) for _ in range(2))
    assert first.table.equals(second.table)
    assert counts_of(first)["00001"] == 4


def test_folders_with_equal_names_sizes_and_times_keep_their_own_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two reproducible archives have them, unpacked at one place after the other."""
    import os
    import shutil

    monkeypatch.setenv("BINTALLY_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "bucket"
    for count in (3, 5):
        for number in range(20):
            for path, data in (
                (f"bin-images/{number:05d}.jpg", b"photo"),
                (f"metadata/{number:05d}.json", METADATA % count),
            ):
                (source / path).parent.mkdir(parents=True, exist_ok=True)
                (source / path).write_bytes(data)
                os.utime(source / path, (0, 0))
        assert {*counts_of(read_source(open_place(source), OPTIONS, Processes(1), 4)).values()} == {
            count
        }
        shutil.rmtree(source)


METADATA = b'{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": %d}'


def command(source: object, folder: Path, *more: object) -> list[str]:
    words = ["build", "--source", source, "--output", folder, "--shard-samples", 30, *more]
    return [sys.executable, "-m", "sharding", *map(str, words)]


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_byte(
    bucket: Path, shards: Path, tmp_path: Path
) -> None:
    """Killed until it has been killed twenty times, from the start and from in between."""
    moments, kills, round_ = random.Random(1), 0, 0
    began = time.monotonic()
    subprocess.run(command(bucket, tmp_path / "0", "--workers", 2), cwd=REPOSITORY, check=True)
    whole_s = time.monotonic() - began
    while kills < 20:
        round_ += 1
        folder = tmp_path / str(round_)
        while not (folder / "dataset.json").exists():
            process = subprocess.Popen(
                command(bucket, folder, "--workers", 2),
                cwd=REPOSITORY,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                process.wait(whole_s * moments.uniform(0.2, 1.3))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        # A kill may come between the last file and the tidying up after it.
        subprocess.run(command(bucket, folder), cwd=REPOSITORY, check=True, capture_output=True)
        assert contents(folder) == contents(shards)
    assert round_ >= 2


@pytest.mark.slow
def test_a_ray_node_killed_in_mid_build_changes_no_byte(bucket: Path, tmp_path: Path) -> None:
    """Of two nodes, the second one is killed while it makes shards."""
    many = ("--shard-samples", 4, "--resize", "64x64")
    expected = tmp_path / "expected"
    subprocess.run(command(bucket, expected, *many), cwd=REPOSITORY, check=True)
    folder = tmp_path / "made"
    with ray_cluster(2) as cluster:
        with (tmp_path / "log").open("wb") as log:
            building = subprocess.Popen(
                command(bucket, folder, *many, "--ray", cluster.address),
                cwd=REPOSITORY,
                stdout=log,
                stderr=log,
                env=cluster.environment,
            )
        while not list(folder.glob(".build/*.json")) and building.poll() is None:
            time.sleep(0.02)
        cluster.nodes[1].kill()
        assert building.wait(200) == 0, (tmp_path / "log").read_text()
    assert contents(folder) == contents(expected)


def test_bad_input_of_every_kind_ends_as_decided(bucket: Path, tmp_path: Path) -> None:
    """More than fifteen kinds in one bucket; the rest is sharded, and the catalog counts them."""
    import io
    import json
    import shutil

    import numpy as np
    from PIL import Image

    source = tmp_path / "bucket"
    shutil.copytree(bucket, source)
    photo = (source / "bin-images/00001.jpg").read_bytes()
    good = json.dumps({"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": 1})
    decoded = Image.open(io.BytesIO(photo)).convert("RGB")

    def encoded(image: Image.Image, form: str = "JPEG", **more: object) -> bytes:
        sink = io.BytesIO()
        image.save(sink, form, **more)
        return sink.getvalue()

    def quantity(value: object) -> str:
        return json.dumps({"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": value})

    rotated = Image.Exif()
    rotated[0x0112] = 6
    huge = bytearray(photo)
    at = huge.index(b"\xff\xc0") + 5
    huge[at : at + 4] = b"\xff\xdc\xff\xdc"
    flipped = bytearray(photo)
    flipped[len(photo) // 2 : len(photo) // 2 + 40] = b"\xff\xd8" * 20
    noise = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    kinds: dict[str, tuple[bytes | None, str | None, str, str]] = {
        # name: photo, metadata, status, part of the reason
        "00900": (photo[: len(photo) // 2], good, "quarantined", "does not decode"),
        "00904": (b"", good, "quarantined", "zero bytes"),
        "00908": (b"<html>404</html>", good, "quarantined", "not a JPEG"),
        "00912": (encoded(noise, "PNG"), good, "quarantined", "not a JPEG"),
        "00916": (photo[:100], good, "quarantined", "header"),
        "00920": (bytes(huge), good, "quarantined", "pixels, more than"),
        "00924": (bytes(flipped), good, "quarantined", "does not decode"),
        "00928": (encoded(decoded.convert("L")), good, "sharded", "grey"),
        "00932": (encoded(decoded.convert("CMYK")), good, "sharded", "CMYK"),
        "00936": (encoded(decoded, exif=rotated), good, "sharded", "rotated"),
        "00940": (photo, "", "quarantined", "not JSON"),
        "00944": (photo, good[:20], "quarantined", "not JSON"),
        "00948": (photo, "[1]", "quarantined", "not a JSON object"),
        "00952": (photo, "{}", "quarantined", "no EXPECTED_QUANTITY"),
        "00956": (photo, quantity(-2), "quarantined", "below zero"),
        "00960": (photo, quantity(1.5), "quarantined", "not a whole number"),
        "00964": (photo, quantity("three"), "quarantined", "not a whole number"),
        "00968": (photo, quantity(None), "quarantined", "not a whole number"),
        "00972": (photo, quantity(10**9), "quarantined", "more than a bin can hold"),
        "00976": (photo, None, "orphan-image", "no metadata"),
        "00980": (None, good, "orphan-metadata", "no bin-images"),
        "009 84": (photo, good, "quarantined", "characters"),
        "009.88": (photo, good, "quarantined", "dot"),
        "0" * 120: (photo, good, "quarantined", "longer than"),
        "00996": (photo, quantity(8), "excluded", "above --max-count"),
    }
    for id_, (image, metadata, _, _) in kinds.items():
        if image is not None:
            (source / f"bin-images/{id_}.jpg").write_bytes(image)
        if metadata is not None:
            (source / f"metadata/{id_}.json").write_text(metadata)
    folder = tmp_path / "made"
    result = build(
        open_place(source), open_place(folder), OPTIONS, distributor=Processes(1), connections=8
    )
    rows = {row.id: row for row in catalog_rows(folder)}
    for id_, (_, _, status, reason) in kinds.items():
        assert rows[id_].status == status, rows[id_]
        assert reason in (rows[id_].reason or ""), rows[id_]
    assert result.catalog["status"].to_pylist() == [row.status for row in rows.values()]
    sharded = sum(row.status == "sharded" for row in rows.values())
    assert sum(split.samples for split in result.dataset.splits.values()) == sharded
