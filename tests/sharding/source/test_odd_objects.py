"""One odd object is one row of the catalog; what concerns every object ends the build in a line."""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from bintally.errors import UsageError, WorkError
from bintally.storage.opening import open_place
from bintally.storage.place import Place
from sharding.build import Result, build
from sharding.distribute import Processes
from sharding.planning.options import Options
from sharding.verify import verify
from tests.conftest import contents
from tests.sharding.builds import catalog_rows
from tests.sharding.faulty_s3 import faulty_proxy

Make = Callable[[Path], object]
METADATA = b'{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": 1}'


def make(source: Place, folder: Path) -> Result:
    options = Options(shard_samples=30)
    return build(source, open_place(folder), options, distributor=Processes(1), connections=8)


def rows_of(source: Place, folder: Path) -> dict[str, SimpleNamespace]:
    """The catalog's rows by id, of a dataset that is then whole."""
    make(source, folder)
    assert verify(open_place(folder), decode=True, distributor=Processes(1))[1] == []
    rows = catalog_rows(folder)
    assert len({row.id for row in rows}) == len(rows)
    return {row.id: row for row in rows}


@pytest.fixture
def odd(bucket: Path, tmp_path: Path) -> Path:
    """A copy of the rendered bucket, to put odd things into."""
    shutil.copytree(bucket, tmp_path / "bucket")
    return tmp_path / "bucket"


def sparse(path: Path, size: int) -> None:
    path.touch()
    os.truncate(path, size)


@pytest.mark.timeout(60)
def test_whatever_else_a_folder_holds_it_costs_a_row_and_no_photo(
    odd: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, metadata = odd / "bin-images", odd / "metadata"
    photo = (images / "00001.jpg").read_bytes()
    kinds: dict[str, tuple[Make | None, Make | None, str]] = {
        # id: what makes the photo and its metadata, None for good ones; part of the reason
        "00900": (lambda path: path.symlink_to("/nowhere/x.jpg"), None, "leads nowhere"),
        "00904": (lambda path: path.symlink_to(path.name), None, "symbolic links"),
        "00908": (os.mkfifo, None, "a pipe or a device"),
        "00912": (None, os.mkfifo, "a pipe or a device"),
        "00916": (None, lambda path: path.symlink_to("/nowhere"), "leads nowhere"),
        "00920": (lambda path: path.symlink_to("/dev/zero"), None, "a pipe or a device"),
        "00924": (lambda path: sparse(path, 300_000_000), None, "300,000,000 bytes, more than"),
        "00928": (None, lambda path: sparse(path, 20_000_000), "20,000,000 bytes, more than"),
        "00932": (Path.mkdir, None, "no bin-images/00932.jpg"),
        "00936": (None, Path.mkdir, "no metadata/00936.json"),
        "009\t40": (None, None, "characters"),
        "009\n44": (None, None, "characters"),
    }
    for id_, (make_photo, make_metadata, _) in kinds.items():
        (make_photo or (lambda path: path.write_bytes(photo)))(images / f"{id_}.jpg")
        (make_metadata or (lambda path: path.write_bytes(METADATA)))(metadata / f"{id_}.json")
    monkeypatch.chdir(images)  # A socket's name may have a hundred characters.
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("00948.jpg")
    (metadata / "00948.json").write_bytes(METADATA)
    (images / "loop").symlink_to(".")
    (images / "00932.jpg" / "up").symlink_to("..")
    for name in (b"caf\xe9", b"caf\\xe9"):
        (images / os.fsdecode(name + b".jpg")).write_bytes(photo)
        (metadata / os.fsdecode(name + b".json")).write_bytes(METADATA)

    rows = rows_of(open_place(odd), tmp_path / "made")
    for id_, (_, _, reason) in kinds.items():
        assert rows[id_].status in ("quarantined", "orphan-image", "orphan-metadata")
        assert reason in (rows[id_].reason or ""), rows[id_]
        assert str(tmp_path) not in (rows[id_].reason or "")
    assert "cannot be read" in (rows["00948"].reason or "")
    assert rows["bin-images/loop"].status == rows["bin-images/00932.jpg/up"].status == "quarantined"
    assert rows["bin-images/caf\\xe9.jpg"].reason == "its name is not UTF-8"
    assert rows["metadata/caf\\xe9.json"].reason == "its name is not UTF-8"
    assert rows["caf\\xe9"].status == "sharded"
    good = {row.id for row in catalog_rows(shards) if row.status == "sharded"}
    assert good == {row.id for row in rows.values() if row.status == "sharded"} - {"caf\\xe9"}


def written_as(form: str) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (8, 8)).save(sink, form)
    return sink.getvalue()


def test_pngs_beside_jpegs_are_named_as_what_they_are(odd: Path, tmp_path: Path) -> None:
    for name in ("00900.jpg", "00904.png", "00908.PNG"):
        (odd / "bin-images" / name).write_bytes(written_as("PNG"))
        (odd / f"metadata/{name[:5]}.json").write_bytes(METADATA)
    rows = rows_of(open_place(odd), tmp_path / "made")
    assert rows["00900"].reason == "photo is a PNG, not a JPEG"
    for path in ("bin-images/00904.png", "bin-images/00908.PNG"):
        assert rows[path].status == "quarantined"
        assert rows[path].reason == "named as a PNG; a photo is a JPEG named bin-images/<id>.jpg"
    assert rows["00904"].status == "orphan-metadata"


def bucket_of(folder: Path, suffix: str, photo: bytes, metadata: bytes) -> Place:
    for number in range(30):
        for path, data in (
            (f"bin-images/{number:05d}{suffix}", photo),
            (f"metadata/{number:05d}.json", metadata),
        ):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
    return open_place(folder)


@pytest.mark.parametrize(
    ("suffix", "metadata", "told"),
    [
        (".jpg", METADATA, "none of the 30 photos can be sharded; of 30 the reason is: photo is a"),
        (".png", METADATA, r"30 quarantined \(bin-images/00000.png: named as a PNG;"),
        (".jpg", b"{}", r"30 quarantined \(00000: metadata has no EXPECTED_QUANTITY\)$"),
    ],
)
def test_a_bucket_without_one_good_photo_is_an_error_that_says_what_it_holds(
    suffix: str, metadata: bytes, told: str, tmp_path: Path
) -> None:
    source = bucket_of(tmp_path / "bucket", suffix, written_as("PNG"), metadata)
    for _ in range(2):  # Again, for the first may have left something behind.
        with pytest.raises((UsageError, WorkError), match=told) as caught:
            make(source, tmp_path / "made")
        assert "\n" not in str(caught.value)
    assert not contents(tmp_path / "made")


def test_a_source_that_disappears_in_mid_build_ends_it(odd: Path, tmp_path: Path) -> None:
    """Not a million photos that vanished."""
    source = open_place(odd)

    class Disappearing(type(source)):  # type: ignore[misc]
        def get(self, path: str) -> bytes:
            if path.startswith("bin-images/"):
                shutil.rmtree(odd, ignore_errors=True)
            data: bytes = super().get(path)
            return data

    place = Disappearing(odd)
    with pytest.raises(WorkError, match=r"none of the 30 photos of \S+ can be had; .*vanished"):
        make(place, tmp_path / "made")
    assert not (tmp_path / "made/dataset.json").exists()


def test_whatever_else_a_bucket_on_s3_holds_it_costs_a_row_and_no_photo(
    bucket_on_s3: str,
    s3_endpoint: str,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import boto3

    client, name = boto3.client("s3"), bucket_on_s3.split("/")[2]

    def put(path: str, data: bytes, **how: str) -> None:
        client.put_object(Bucket=name, Key=f"abid/{path}", Body=data, **how)

    photo = client.get_object(Bucket=name, Key="abid/bin-images/00001.jpg")["Body"].read()
    for id_ in ("00900", "00904", "00908", "00912", "00916", "a\tb"):
        archived = {"StorageClass": "GLACIER"} if id_ == "00900" else {}
        put(f"bin-images/{id_}.jpg", photo, **archived)
        put(f"metadata/{id_}.json", METADATA)
    put("bin-images//x.jpg", photo)
    put("bin-images/", b"")
    refused = {
        "bin-images/00904": (403, "AccessDenied"),
        "bin-images/00908": (404, "NoSuchKey"),
        "metadata/00912": (403, "AccessDenied"),
        "metadata/00916": (404, "NoSuchKey"),
    }
    with faulty_proxy(s3_endpoint, {}, stall_s=0, refused=refused) as (endpoint, made):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        rows = rows_of(open_place(bucket_on_s3), tmp_path / "made")
    assert made["AccessDenied"] == 2, "what is refused is not asked for again"
    for id_, reason in (
        ("00900", "bin-images/00900.jpg: .*InvalidObjectState"),
        ("00904", "bin-images/00904.jpg: .*AccessDenied"),
        ("00908", "bin-images/00908.jpg: vanished"),
        ("00912", "metadata/00912.json: .*AccessDenied"),
        ("00916", "metadata/00916.json: vanished"),
        ("a\tb", "characters"),
        ("bin-images//x.jpg", "not named"),
    ):
        assert rows[id_].status == "quarantined"
        assert re.search(reason, rows[id_].reason or ""), rows[id_]
    assert "bin-images/" not in rows, "an empty object that ends in a slash is a folder"
    good = {row.id for row in catalog_rows(shards) if row.status == "sharded"}
    assert good == {row.id for row in rows.values() if row.status == "sharded"}


@pytest.mark.parametrize(
    ("refused", "told"),
    [
        (
            {"metadata/": (403, "AccessDenied")},
            r"none of the \d+ metadata files can be had; metadata.*AccessDenied",
        ),
        (
            {"bin-images/": (403, "AccessDenied")},
            r"none of the 30 photos .* can be had; bin-images",
        ),
        ({"bin-images/": (404, "NoSuchKey")}, r"none of the 30 photos .* can be had; .*vanished"),
        ({"bin-images/": (400, "ExpiredToken")}, "expired"),
        ({"bin-images/00001": (400, "ExpiredToken")}, "expired"),
        ({"bin-images/00001": (404, "NoSuchBucket")}, "no such bucket"),
    ],
)
def test_what_concerns_a_whole_bucket_ends_the_build_in_a_line(
    refused: dict[str, tuple[int, str]],
    told: str,
    bucket_on_s3: str,
    s3_endpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BINTALLY_CACHE", str(tmp_path / "cache"))
    with faulty_proxy(s3_endpoint, {}, stall_s=0, refused=refused) as (endpoint, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises((UsageError, WorkError), match=told) as caught:
            make(open_place(bucket_on_s3), tmp_path / "made")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made/dataset.json").exists()
