"""The same photos, whichever way their labels come, are the same samples in the same shards."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import bintally
from bintally.dataset.manifest import read_dataset
from bintally.errors import UsageError
from bintally.storage.opening import open_place
from sharding.build import Result, build
from sharding.distribute import Processes
from sharding.planning.options import Options
from sharding.verify import verify
from tests.sharding.building.test_build import catalog

OPTIONS = Options(shard_samples=30, group="none")


def make(source: Path | str, folder: Path, options: Options = OPTIONS, **how: Any) -> Result:
    place = open_place(folder)
    result = build(
        open_place(source), place, options, distributor=Processes(1), connections=8, **how
    )
    assert verify(place, decode=True, distributor=Processes(1))[1] == []
    return result


def samples(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """The names and sums of the files in each tar, in its order, but for the JSON."""
    found = {}
    for path in sorted(folder.glob("*/*.tar")):
        with tarfile.open(path) as tar:
            files = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]  # type: ignore[union-attr]
        found[path.name] = [
            (name, hashlib.sha256(data).hexdigest())
            for name, data in files
            if not name.endswith(".json")
        ]
    return found


@pytest.fixture(scope="module")
def abid_made(bucket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts") / "abid"
    make(bucket, folder)
    return folder


@pytest.fixture(scope="module")
def rows(abid_made: Path) -> list[dict[str, Any]]:
    """What a file of labels says of the photos whose metadata are good."""
    made = catalog(abid_made).values()
    return [
        {"id": r["id"], "label": r["count"], "aisle": f"A{r['count']}", "weight": r["bytes"] / 8}
        for r in made
        if r["count"] is not None
    ]


def write(rows: list[dict[str, Any]], file: Path) -> Path:
    if file.suffix == ".csv":
        with file.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, [*rows[0]])
            writer.writeheader()
            writer.writerows(rows)
    elif file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_labels_of_a_file_give_the_tars_that_metadata_give_but_for_the_json(
    suffix: str, bucket: Path, abid_made: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    file = write(rows[::-1], tmp_path / f"labels{suffix}")
    folder = tmp_path / "made"
    make(bucket, folder, labels=str(file))
    assert samples(folder) == samples(abid_made)
    own = catalog(folder)
    for row in rows:
        made = own[row["id"]]
        assert (made["aisle"], made["weight"]) == (row["aisle"], row["weight"])
        assert made["path"] == f"bin-images/{row['id']}.jpg"
    shard = read_dataset(folder).shards[0]
    with tarfile.open(folder / shard.path) as tar:
        name = next(m.name for m in tar.getmembers() if m.name.endswith(".json"))
        value = json.load(tar.extractfile(name))  # type: ignore[arg-type]
    row = next(row for row in rows if f"{row['id']}.json" == name)
    assert value == {key: row[key] for key in ("label", "aisle", "weight")}
    again = make(bucket, folder, labels=str(file))
    assert again.was_complete
    chosen = bintally.Loader(folder, split="train", batch_size=1, where="aisle == 'A3'")
    assert {int(label) for _, labels in chosen for label in labels} == {3}


def test_class_folders_give_the_tars_that_metadata_give_but_for_the_json(
    bucket: Path, abid_made: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    for row in rows:
        target = tmp_path / f"photos/{row['label']}/{row['id']}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(bucket / f"bin-images/{row['id']}.jpg", target)
    make(tmp_path / "photos", tmp_path / "made")
    assert samples(tmp_path / "made") == samples(abid_made)


def test_a_list_of_objects_takes_the_place_of_listing_them(
    bucket_on_s3: str, bucket: Path, abid_made: Path, tmp_path: Path
) -> None:
    listed = [
        {"key": f"abid/{path.relative_to(bucket)}", "size": path.stat().st_size}
        for path in bucket.rglob("*.*")
    ]
    file = write(listed, tmp_path / "objects.csv")
    make(bucket_on_s3, tmp_path / "made", listing=str(file))
    assert samples(tmp_path / "made") == samples(abid_made)


def image(colour: tuple[int, int, int], form: str, number: int) -> bytes:
    sink = io.BytesIO()
    photo = Image.new("RGB", (40 + number, 32), colour)
    photo.save(sink, form)
    return sink.getvalue()


KINDS = {"cat": (200, 30, 30), "dog": (30, 200, 30), "owl": (30, 30, 200)}


def test_classes_that_are_names_are_built_loaded_and_grown(tmp_path: Path) -> None:
    photos, folder = tmp_path / "photos", tmp_path / "made"
    forms = (("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"), ("JPEG", ".JPG"))
    for kind, colour in KINDS.items():
        (photos / kind).mkdir(parents=True)
        for number in range(20):
            form, suffix = forms[number % 4]
            (photos / kind / f"{number:03d}{suffix}").write_bytes(image(colour, form, number))
    options = Options(shard_samples=10, split=(0.5, 0.25, 0.25))
    result = make(photos, folder, options)
    dataset = read_dataset(folder)
    assert dataset.classes == ["cat", "dog", "owl"]
    assert [split.samples for split in dataset.splits.values()] == [30, 15, 15]
    assert {n for s in dataset.splits.values() for n in s.class_counts.values()} == {5, 10}
    notes = [row["reason"] for row in catalog(folder).values()]
    assert notes.count("PNG, stored as JPEG") == notes.count("WebP, stored as JPEG") == 15
    assert result.was_complete is False
    for images, labels in bintally.Loader(folder, split="train", batch_size=1, image_size=32):
        channel = images.mean(dim=(0, 2, 3)).argmax()
        assert int(labels) == int(channel), "cats are red, dogs green and owls blue"
    # Readers of others find a number.
    with tarfile.open(folder / dataset.shards[0].path) as tar:
        numbers = {tar.extractfile(m).read() for m in tar.getmembers() if m.name.endswith(".cls")}  # type: ignore[union-attr]
    assert numbers <= {b"0", b"1", b"2"}
    before = catalog(folder)
    (photos / "owl/new.png").write_bytes(image(KINDS["owl"], "PNG", 3))
    make(photos, folder, options, append=True)
    after = catalog(folder)
    assert after["new"]["label"] == "owl"
    assert all(after[id_]["shard"] == row["shard"] for id_, row in before.items())
    whole = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    (folder / read_dataset(folder).shards[0].path).unlink()
    make(photos, folder, options)
    assert whole == {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}


def numbered(folder: Path) -> set[tuple[int, str]]:
    """Each sample's number, for readers of others, and its name."""
    found = set()
    for path in folder.glob("*/*.tar"):
        with tarfile.open(path) as tar:
            files = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
        for name, data in files.items():
            if name.endswith(".cls"):
                told = json.loads(files[name.replace(".cls", ".json")])
                found.add((int(data), told["label"]))
    return found


def test_a_class_that_comes_later_changes_no_number_of_those_that_are_there(
    tmp_path: Path,
) -> None:
    photos, folder = tmp_path / "photos", tmp_path / "made"
    for kind in ("cat", "owl", "ant"):
        if kind == "ant":
            make(photos, folder)
        (photos / kind).mkdir(parents=True)
        for number in range(9):
            data = image((number, 0, 0), "JPEG", number)
            (photos / kind / f"{kind}{number}.jpg").write_bytes(data)
    make(photos, folder, append=True)
    assert read_dataset(folder).classes == ["cat", "owl", "ant"]
    assert numbered(folder) == {(0, "cat"), (1, "owl"), (2, "ant")}
    loader = bintally.Loader(folder, split="train", batch_size=1, image_size=32)
    seen = {(int(batch.labels[0]), batch.ids[0][:3]) for batch in loader}
    assert seen == {(0, "cat"), (1, "owl"), (2, "ant")}


@pytest.mark.parametrize(
    ("grown", "told"),
    [
        (
            [{"id": "00041", "label": "two"}, {"id": "00042", "label": "3"}],
            "labels are names, and those of the dataset are counts",
        ),
        (
            [{"id": "00041", "label": 2, "aisle": 7}, {"id": "00042", "label": 3, "aisle": 8}],
            "the column aisle is string, not int64",
        ),
    ],
)
def test_labels_that_do_not_go_with_those_that_are_there_are_refused(
    grown: list[dict[str, Any]], told: str, bucket: Path, tmp_path: Path
) -> None:
    first = [{"id": f"{n:05d}", "label": n % 6, "aisle": "A"} for n in range(1, 30)]
    folder = tmp_path / "made"
    make(bucket, folder, labels=str(write(first, tmp_path / "first.csv")))
    before = samples(folder)
    with pytest.raises(UsageError, match=told):
        make(bucket, folder, labels=str(write(grown, tmp_path / "grown.csv")), append=True)
    assert samples(folder) == before


def test_what_labels_said_before_stays_in_the_catalog(bucket: Path, tmp_path: Path) -> None:
    first = [{"id": f"{n:05d}", "label": n % 6, "aisle": "A"} for n in range(1, 20)]
    later = [{"id": f"{n:05d}", "label": n % 6} for n in range(1, 40)]
    folder = tmp_path / "made"
    make(bucket, folder, labels=str(write(first, tmp_path / "first.csv")))
    held = {id_ for id_, row in catalog(folder).items() if row["shard"] is not None}
    make(bucket, folder, labels=str(write(later, tmp_path / "later.csv")), append=True)
    rows = catalog(folder)
    assert {id_ for id_, row in rows.items() if row["aisle"] == "A"} == held
    assert sum(row["shard"] is not None for row in rows.values()) > len(held)


def test_a_column_says_what_belongs_together_and_another_which_split(
    bucket: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    told = {row["id"]: "test" for row in rows[:5]}
    file = write(
        [{**r, "aisle": f"A{n // 4}", "split": told.get(r["id"], "")} for n, r in enumerate(rows)],
        tmp_path / "labels.csv",
    )
    options = Options(shard_samples=30, group="column:aisle")
    make(bucket, tmp_path / "made", options, labels=str(file))
    of_group: dict[str, set[str]] = {}
    for row in catalog(tmp_path / "made").values():
        if row["split"] is not None:
            of_group.setdefault(row["group"], set()).add(row["split"])
            assert row["split"] == told.get(row["id"], row["split"])
    assert all(len(splits) == 1 for group, splits in of_group.items() if group != "A1")
    with pytest.raises(UsageError, match="there is no --labels file"):
        make(bucket, tmp_path / "other", options)
