"""Photos and metadata of any kind: each is sharded or put aside by name, and the build ends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import simplejpeg

from bintally.storage.folder import Folder
from tests.conftest import Command
from tests.mutations import encodings, mutated_metadata, mutated_photos
from tests.sharding.building.test_build import samples_in_tars
from tests.sharding.builds import catalog_rows

STATUSES = {"sharded", "quarantined"}


def mutated_bucket(bucket: Path, shards: Path, folder: Path, number: int, side: int) -> Folder:
    """`number` mutated photos with good metadata, and as many good ones with mutated metadata."""
    samples = samples_in_tars(shards)
    good = sorted(samples)[:8]
    photos = [data for id_ in good for data in encodings(samples[id_][2], side)]
    files = [(bucket / f"metadata/{id_}.json").read_bytes() for id_ in good]
    for name in ("bin-images", "metadata"):
        (folder / name).mkdir(parents=True)
    odd_photos = mutated_photos(photos, number, seed=1)
    odd_files = mutated_metadata(files, number, seed=2)
    for at, (photo, file) in enumerate(zip(odd_photos, odd_files, strict=True)):
        for kind, image, metadata in (
            ("p", photo, files[at % len(files)]),
            ("m", photos[at % len(photos)], file),
        ):
            (folder / f"bin-images/{kind}{at:05d}.jpg").write_bytes(image)
            (folder / f"metadata/{kind}{at:05d}.json").write_bytes(metadata)
    return Folder(folder)


def rows_of(run: Command, source: Folder, folder: Path) -> dict[str, SimpleNamespace]:
    """The rows of the dataset that is made of the bucket, and that is whole."""
    run("sharding", "build", "--source", source.root, "--output", folder, check=True)
    verified = run("sharding", "verify", folder, "--decode", check=True)
    assert verified.stdout.endswith(": whole\n")
    run("sharding", "report", folder, "--output", folder.with_name("report"), check=True)
    return {row.id: row for row in catalog_rows(folder)}


def check(rows: dict[str, SimpleNamespace], folder: Path, number: int) -> None:
    assert len(rows) == 2 * number
    assert {row.status for id_, row in rows.items() if id_.startswith("p")} <= STATUSES
    assert {row.status for row in rows.values()} <= STATUSES | {"excluded"}
    sharded = {id_: row for id_, row in rows.items() if row.status == "sharded"}
    # Of both kinds there are plenty, or the mutations are none.
    for kind in "pm":
        good = sum(id_.startswith(kind) for id_ in sharded)
        assert number / 10 < good < number * 9 / 10
    assert all(row.reason for row in rows.values() if row.status != "sharded")
    samples = samples_in_tars(folder)
    assert samples.keys() == sharded.keys()
    for _, _, photo in samples.values():
        # As the CPU engine reads them.
        simplejpeg.decode_jpeg_header(photo, strict=True)
        assert simplejpeg.decode_jpeg(photo, strict=True).shape[2] == 3


@pytest.mark.slow
def test_hundreds_of_mutated_photos_and_files_are_sharded_or_put_aside(
    bucket: Path, shards: Path, tmp_path: Path, run: Command
) -> None:
    source = mutated_bucket(bucket, shards, tmp_path / "bucket", 300, side=32)
    check(rows_of(run, source, tmp_path / "made"), tmp_path / "made", 300)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_of_each_are(bucket: Path, shards: Path, tmp_path: Path, run: Command) -> None:
    source = mutated_bucket(bucket, shards, tmp_path / "bucket", 10_000, side=64)
    check(rows_of(run, source, tmp_path / "made"), tmp_path / "made", 10_000)
