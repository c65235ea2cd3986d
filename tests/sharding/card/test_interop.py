"""The readers of others open a dataset, as its cards say: webdataset, tar, DALI's own, and, where
they are installed (`tests/interop.txt`), Hugging Face's `datasets` and `mlcroissant`."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from bintally.dataset.catalog import encode_catalog, read_catalog
from bintally.dataset.index import format_index
from bintally.dataset.manifest import CATALOG, DATASET, SPLITS, Dataset, Shard, Split, read_dataset
from sharding.card.card import CROISSANT, README, make_cards
from sharding.tar import TarBuilder
from tests.conftest import REPOSITORY, contents
from tests.foreign_tars import COLOURS, photo
from tests.sharding.builds import dalis_own_reader, make
from tests.sharding.card.examples import OPTIONS, catalog_of, dataset_of

NAMES = [*COLOURS]
DATASETS = ["counts", "names"]
READERS = {"bintally": "bintally", "webdataset": "glob, webdataset", "datasets": "load_dataset"}
"""And what is imported of them."""


@dataclass(frozen=True)
class Sample:
    """What a tar holds of it."""

    split: str
    label: int
    """Its count, or the number of its class."""
    metadata: Any
    photo: bytes


def write_cards(folder: Path) -> None:
    catalog = read_catalog((folder / CATALOG).read_bytes())
    for name, data in make_cards(read_dataset(folder), catalog).items():
        (folder / name).write_bytes(data)


@pytest.fixture(scope="module")
def counts(small_bucket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of counts, as it was built, with its cards."""
    folder = tmp_path_factory.mktemp("interop") / "counts"
    make(small_bucket, folder)
    return folder


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose classes are names, with its cards. Each sample's JSON has keys of its own,
    and a column of the user's has a name of two words."""
    folder = tmp_path_factory.mktemp("interop") / "names"
    rows: list[dict[str, Any]] = []
    splits = {}
    for split in SPLITS:
        tar, path = TarBuilder(), f"{split}/{split}-000000.tar"
        for position in range(6):
            number, name = len(rows), NAMES[position % 3]
            id_ = f"photo-{number}"
            metadata = json.dumps({"name": name, id_: {"tags": [number]}}).encode()
            files = [("jpg", photo(number, COLOURS[name])), ("cls", b"%d" % (position % 3))]
            tar.add(id_, [*files, ("json", metadata)])
            row = {"id": id_, "label": name, "split": split, "shard": path, "position": position}
            rows.append(row | {"status": "sharded", "colour of bin": number / 4})
        data, counts = b"".join(tar.finish()), dict.fromkeys(NAMES, 2)
        (folder / split).mkdir(parents=True)
        (folder / path).write_bytes(data)
        index = f"{split}/{split}-000000.idx"
        (folder / index).write_bytes(format_index(tar.samples))
        sha256 = hashlib.sha256(data).hexdigest()
        splits[split] = Split(6, counts, [Shard(path, index, 6, len(data), sha256, counts)])
    catalog = encode_catalog(pa.Table.from_pylist(rows))
    (folder / CATALOG).write_bytes(catalog)
    files_ = {CATALOG: hashlib.sha256(catalog).hexdigest()}
    # A number in a `.cls` is a count to the library: it reads the name where it stands.
    dataset = Dataset(NAMES, 0, {}, OPTIONS, splits, files_, label="json:name")
    (folder / DATASET).write_bytes(dataset.to_json())
    write_cards(folder)
    return folder


@pytest.fixture(params=DATASETS)
def folder(request: pytest.FixtureRequest) -> Path:
    value: Path = request.getfixturevalue(request.param)
    return value


def samples_of(folder: Path) -> dict[str, Sample]:
    """By id, as plain tar sees them."""
    found = {}
    for path in sorted(folder.glob("*/*.tar")):
        with tarfile.open(path) as tar:
            files = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
        for id_ in {name.partition(".")[0] for name in files}:
            label, metadata = int(files[f"{id_}.cls"]), json.loads(files[f"{id_}.json"])
            found[id_] = Sample(path.parent.name, label, metadata, files[f"{id_}.jpg"])
    assert {sample.split for sample in found.values()} == {*SPLITS}
    return found


def size_of(photo: bytes) -> tuple[int, int]:
    from PIL import Image

    return Image.open(io.BytesIO(photo)).size


def run_in(folder: Path, command: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder, offline and with caches of its own."""
    environment = {
        "PYTHONPATH": str(REPOSITORY),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(cache),
        "CROISSANT_CACHE": str(cache),
    }
    result = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result


def code(folder: Path, language: str, word: str) -> str:
    """The block of the card that has a word in it."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (folder / README).read_text(), re.DOTALL)
    (block,) = [block for block in blocks if word in block]
    return str(block)


@pytest.mark.parametrize("reader", [*READERS])
def test_what_the_card_says_of_opening_it_works_as_written(
    reader: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip(reader)
    monkeypatch.chdir(folder)
    exec(code(folder, "python", f"import {READERS[reader]}"), {})
    lines = capsys.readouterr().out.splitlines()
    train = {id_: s for id_, s in samples_of(folder).items() if s.split == "train"}
    if reader == "bintally":
        assert lines[0].startswith(f"torch.Size([{len(train)}, 3, 224, 224]) tensor([")
    else:
        shown = {f"{id_} {s.label} {size_of(s.photo)}" for id_, s in train.items()}
        assert sorted(lines) == sorted(shown)


def test_tar_unpacks_a_shard_as_the_card_says(folder: Path, tmp_path: Path) -> None:
    here = tmp_path / "dataset"
    shutil.copytree(folder, here)
    run_in(here, ["sh", "-ec", code(folder, "sh", "tar")], tmp_path)
    with tarfile.open(folder / "train/train-000000.tar") as tar:
        assert {file.name for file in (tmp_path / "photos").iterdir()} == {*tar.getnames()}
    assert contents(here) == contents(folder)


def test_hugging_face_reads_every_sample_of_every_split(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    program = """
import json, os, datasets
for name, split in datasets.load_dataset(os.getcwd()).items():
    labels = split.features["cls"]
    for row in split:
        of = labels.int2str(row["cls"]) if hasattr(labels, "int2str") else row["cls"]
        print(json.dumps([row["__key__"], name, row["cls"], of, row["json"], row["jpg"].size]))
"""
    lines = run_in(folder, [sys.executable, "-c", program], tmp_path).stdout.splitlines()
    expected = [
        [id_, s.split, s.label, label_of(s, folder), s.metadata, [*size_of(s.photo)]]
        for id_, s in sorted(samples_of(folder).items())
    ]
    assert sorted(map(rounded, lines)) == rounded(json.dumps(expected))


def label_of(sample: Sample, folder: Path) -> int | str:
    classes = read_dataset(folder).classes
    return classes[sample.label] if classes == NAMES else sample.label


def rounded(text: str) -> Any:
    """JSON without the last digits of its numbers, which pandas' reader, used there, gets wrong."""
    return json.loads(text, parse_float=lambda digits: round(float(digits), 6))


MLCROISSANT = """
import json
import mlcroissant

dataset = mlcroissant.Dataset("croissant.json")
issues = dataset.metadata.ctx.issues
print(json.dumps([sorted(issues.errors), sorted(issues.warnings)]))

def plain(value):
    if isinstance(value, bytes):
        return value.decode()
    if hasattr(value, "tobytes") and hasattr(value, "size"):
        return list(value.size) if hasattr(value, "getpixel") else value.item()
    return [plain(part) for part in value] if isinstance(value, list) else value

for name in ("splits", "samples", "metadata", "catalog"):
    records = dataset.records(name)
    print(json.dumps([{key: plain(value) for key, value in r.items()} for r in records]))
"""


def test_mlcroissant_finds_no_fault_and_reads_every_record(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlcroissant")
    result = run_in(folder, [sys.executable, "-c", MLCROISSANT], tmp_path)
    assert "@context" not in result.stderr
    lines = result.stdout.splitlines()
    (errors, warnings), splits, samples, metadata, catalog = map(json.loads, lines)
    assert errors == []
    # What no build knows.
    unknown = ("citeAs", "datePublished", "license", "version")
    assert len(warnings) == len(unknown)
    assert all(any(name in warning for name in unknown) for warning in warnings)

    assert [record["splits/name"] for record in splits] == [*SPLITS]
    expected = samples_of(folder)
    label = "label" if read_dataset(folder).classes == NAMES else "count"
    assert {record["samples/id"]: record for record in samples} == {
        id_: {
            "samples/id": id_,
            "samples/image": [*size_of(s.photo)],
            f"samples/{label}": label_of(s, folder),
            "samples/split": s.split,
        }
        for id_, s in expected.items()
    }
    assert {r["metadata/id"]: json.loads(r["metadata/json"]) for r in metadata} == {
        id_: s.metadata for id_, s in expected.items()
    }
    table = read_catalog((folder / CATALOG).read_bytes()).to_pylist()
    assert catalog == [
        {f"catalog/{name.replace(' ', '_')}": value for name, value in row.items()} for row in table
    ]


def test_mlcroissant_finds_no_fault_with_more_tars_than_are_described(tmp_path: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    dataset = dataset_of([0], {"train": [[1]] * 2000})
    (tmp_path / CROISSANT).write_bytes(make_cards(dataset, catalog_of(dataset))[CROISSANT])
    metadata = mlcroissant.Dataset(tmp_path / CROISSANT).metadata
    assert not metadata.ctx.issues.errors
    assert {files.id for files in metadata.file_sets} == {"tars", "photos", "json"}


def test_webdataset_reads_every_sample(folder: Path) -> None:
    import webdataset as wds

    urls = [str(path) for path in sorted(folder.glob("*/*.tar"))]
    read = {
        sample["__key__"].rpartition("/")[2]: (int(sample["cls"]), sample["jpg"])
        for sample in wds.WebDataset(urls, shardshuffle=False)
    }
    assert read == {id_: (s.label, s.photo) for id_, s in samples_of(folder).items()}


def test_dalis_own_reader_reads_every_sample(folder: Path) -> None:
    reader = dalis_own_reader(sorted(folder.glob("*/*.tar")))
    expected = sorted((s.photo, s.label, str(s.metadata)) for s in samples_of(folder).values())
    read = []
    for _ in expected:
        jpg, cls, metadata = next(reader)
        read.append((jpg, int(cls), str(json.loads(metadata))))
    assert sorted(read) == expected
