"""Tars that others wrote become a dataset, and stay as they are."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from bintally.dataset.index import parse_index
from bintally.dataset.manifest import read_dataset
from bintally.errors import UsageError, WorkError
from bintally.storage.opening import open_place
from sharding.report.page import write_report
from tests.conftest import Command, contents, copy
from tests.foreign_tars import (
    COLOURS,
    adopted,
    faults,
    loader,
    photo,
    sample,
    taken,
    tar_of,
    write_as_img2dataset,
    write_with_webdataset,
)
from tests.sharding.builds import catalog_rows
from tests.sharding.faulty_s3 import faulty_proxy


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 shards by webdataset's ShardWriter."""
    folder = tmp_path_factory.mktemp("written")
    write_with_webdataset(folder)
    return folder


@pytest.fixture
def tars(written: Path, tmp_path: Path) -> Path:
    """A copy of them."""
    return Path(shutil.copytree(written, tmp_path / "tars"))


def test_shards_of_webdataset_are_read_in_order_and_resumed_and_not_touched(tars: Path) -> None:
    before = contents(tars)
    adoption = adopted(tars)
    dataset = adoption.dataset
    assert not adoption.quarantined
    assert dataset.splits["train"].samples == 100
    assert dataset.classes == [0, 1, 2, 3]
    after = contents(tars)
    assert {name: after[name] for name in before} == before
    assert {*after} - {*before} == {
        "dataset.json",
        "catalog.parquet",
        *(f"shard-{n:06d}.idx" for n in range(20)),
    }
    first = loader(tars, seed=3)
    epochs = [taken(first), taken(first)]
    ids = [id_ for batch, _ in epochs[0] for id_ in batch]
    assert len({*ids}) == 96
    assert ids != sorted(ids)
    assert epochs[0] != epochs[1]
    for batch, labels in epochs[0]:
        assert labels == [int(id_[-6:]) % 4 for id_ in batch]
    # As with ours: in mid-epoch from two integers.
    begun = loader(tars, seed=3)
    batches = iter(begun)
    for _ in range(5):
        next(batches)
    state = begun.state_dict()
    batches.close()  # type: ignore[attr-defined]
    resumed = loader(tars, seed=3)
    resumed.load_state_dict(state)
    assert taken(resumed) == epochs[0][5:]
    assert faults(tars) == []


def test_the_output_of_img2dataset_is_adopted_with_names_beside_or_apart(tmp_path: Path) -> None:
    tars, apart = tmp_path / "laion", tmp_path / "index/laion"
    write_as_img2dataset(tars)
    before = contents(tars)
    there = adopted(tars, apart, "json:label.name").dataset
    assert contents(tars) == before
    assert {*contents(apart)} == {"dataset.json", "catalog.parquet", "00000.idx", "00001.idx"}
    assert there.classes == sorted(COLOURS)
    assert there.tars == "../../laion"
    assert str(tmp_path).encode() not in contents(apart)["dataset.json"]
    rows = catalog_rows(apart)
    assert {row.count for row in rows} == {None}
    assert {row.label for row in rows} == {*COLOURS}
    here = adopted(tars, None, "json:label.name").dataset
    assert here.sha256 == there.sha256
    known = {row.id: row.label for row in rows}
    for place in (apart, tars):
        assert faults(place) == []
        opened = loader(place, batch_size=4)
        for ids, labels in taken(opened):
            assert [opened.classes[label] for label in labels] == [known[id_] for id_ in ids]
    blue = loader(apart, split="train", where='label == "blue"', batch_size=1)
    assert {known[ids[0]] for ids, _ in taken(blue)} == {"blue"}
    assert len(blue) == 6
    assert adopted(tars, tmp_path / "captions", "txt").dataset.classes == sorted(
        f"a photo of {name}" for name in COLOURS
    )
    # Both moved together, the one still points at the other.
    shutil.move(tmp_path / "laion", tmp_path / "elsewhere/laion")
    shutil.move(tmp_path / "index", tmp_path / "elsewhere/index")
    assert faults(tmp_path / "elsewhere/index/laion") == []
    shutil.move(tmp_path / "elsewhere/laion", tmp_path / "gone")
    with pytest.raises(UsageError, match=r"its tars are to be in .*`bintally adopt TARS --output"):
        loader(tmp_path / "elsewhere/index/laion")


def test_dalis_reader_takes_the_indexes_that_are_as_its_own_tool_makes_them(tars: Path) -> None:
    pytest.importorskip("nvidia.dali")
    wds2idx = pytest.importorskip("wds2idx")
    from nvidia.dali import fn, pipeline_def

    paths = sorted(tars.glob("*.tar"))
    for path in paths[:3]:
        with wds2idx.IndexCreator(str(path), str(path.with_suffix(".idx")), verbose=False) as made:
            made.create_index()
    # So what that tool has left beside tars is in nobody's way.
    adopted(tars)
    indexes = [str(path.with_suffix(".idx")) for path in paths]

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)  # type: ignore[untyped-decorator]
    def pipeline() -> Any:
        outputs: Any = fn.readers.webdataset(
            paths=[*map(str, paths)], index_paths=indexes, ext=["jpg", "cls"]
        )
        return tuple(outputs)

    reader = pipeline()
    for number in range(100):
        jpg, cls = (output.at(0).tobytes() for output in reader.run())
        assert (jpg, cls) == (photo(number), b"%d" % (number % 4))


def test_folders_named_so_are_splits(tmp_path: Path) -> None:
    for number, path in enumerate(("train/a", "val/a", "x/test/a", "validation/b", "other/c", "d")):
        file = tmp_path / f"tars/{path}.tar"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(tar_of(sample(f"s{number}", number)))
    splits = adopted(tmp_path / "tars").dataset.splits
    assert {name: [s.path for s in split.shards] for name, split in splits.items()} == {
        "train": ["d.tar", "other/c.tar", "train/a.tar"],
        "validation": ["val/a.tar", "validation/b.tar"],
        "test": ["x/test/a.tar"],
    }
    assert faults(tmp_path / "tars") == []


def test_keys_that_several_tars_have_are_told_apart_by_the_tars(tmp_path: Path) -> None:
    for name in ("train/0", "val/0"):
        (tmp_path / name).parent.mkdir()
        files = sample("same", 1) | sample(f"own-{name[0]}", 2)
        (tmp_path / f"{name}.tar").write_bytes(tar_of(files))
    dataset = adopted(tmp_path).dataset
    assert dataset.ids == "path/key"
    ids = ["val/0/same", "val/0/own-v"]
    assert taken(loader(tmp_path, split="validation", batch_size=2))[0][0] == ids
    assert faults(tmp_path) == []


def test_adopting_again_gives_the_same_bytes_and_what_is_missing(tars: Path) -> None:
    adopted(tars)
    whole = contents(tars)
    assert adopted(tars).was_complete
    for name in ("shard-000003.idx", "catalog.parquet", "dataset.json"):
        (tars / name).unlink()
        assert not adopted(tars).was_complete
        assert contents(tars) == whole
    for name in whole:  # Killed before the last file.
        if not name.endswith(".tar") and name != "shard-000001.idx":
            (tars / name).unlink()
    adopted(tars)
    assert contents(tars) == whole


def test_tars_that_come_go_or_change_are_followed(tars: Path) -> None:
    apart = tars.parent / "apart"
    adopted(tars, apart)
    (tars / "shard-000000.tar").unlink()
    (tars / "shard-000001.tar").write_bytes(tar_of(sample("changed", 1, 9)))
    (tars / "shard-000020.tar").write_bytes(tar_of(sample("new", 2)))
    assert faults(apart)
    dataset = adopted(tars, apart).dataset
    assert dataset.splits["train"].samples == 92
    assert dataset.classes == [0, 1, 2, 3, 9]
    assert not (apart / "shard-000000.idx").exists()
    assert faults(apart) == []


def test_nothing_of_others_is_written_over(tars: Path, shards: Path) -> None:
    (tars / "shard-000002.idx").write_bytes(b"v1.2 1\njpg 512 9 other.jpg\n")
    before = contents(tars)
    with pytest.raises(UsageError, match=r"shard-000002.idx, which .*--output names another place"):
        adopted(tars)
    assert contents(tars) == before
    adopted(tars, tars.parent / "apart")
    assert contents(tars) == before
    with pytest.raises(UsageError, match=r"holds a dataset.json that `adopt` did not make"):
        adopted(shards)
    foreign = tars.parent / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("…")
    with pytest.raises(UsageError, match=r"holds thesis.tex, which is no part"):
        adopted(tars, foreign)
    for output in (tars, tars / "inside", tars.parent):
        with pytest.raises(UsageError, match="one contains the other"):
            adopted(tars, output)


def test_where_nothing_can_be_written_beside_the_tars_another_place_is_the_remedy(
    tars: Path, tmp_path: Path, s3: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "--output names another place for the dataset"
    copy(open_place(tars), open_place(f"{s3}/tars"))
    with faulty_proxy(s3_endpoint, {}, stall_s=0, read_only=True) as (endpoint, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(UsageError, match=f"access denied.*; {told}"):
            adopted(f"{s3}/tars")
        assert adopted(f"{s3}/tars", tmp_path / "apart").dataset.splits["train"].samples == 100
    (tars / "shard-000003.idx").mkdir()
    with pytest.raises(WorkError, match=f"shard-000003.idx: cannot be written: .*; {told}"):
        adopted(tars)
    (tars / ".bintally-lock").symlink_to("elsewhere")
    with pytest.raises(WorkError, match=f"tars: cannot be written: .*; {told}"):
        adopted(tars)


@pytest.mark.parametrize("at", [700, 512 * 7, -11_000])
def test_a_tar_that_is_cut_short_ends_it_and_is_named_with_the_byte(tars: Path, at: int) -> None:
    file = tars / "shard-000004.tar"
    data = file.read_bytes()[:at]
    file.write_bytes(data)
    with pytest.raises(WorkError, match=rf"shard-000004.tar: cut short at byte {len(data):,}"):
        adopted(tars)
    assert not (tars / "dataset.json").exists()


def test_what_is_no_tar_to_adopt_is_refused(tmp_path: Path, tars: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match="no tars here"):
        adopted(empty)
    odd = tars / os.fsdecode(b"caf\xe9.tar")
    shutil.copy(tars / "shard-000000.tar", odd)
    with pytest.raises(UsageError, match=r"caf\\udce9.tar: its name is not UTF-8, .* rename it"):
        adopted(tars)
    odd.unlink()
    with tarfile.open(tars / "shard-000099.tar.gz", "w:gz"):
        pass
    with pytest.raises(UsageError, match=r"shard-000099.tar.gz: is compressed"):
        adopted(tars)
    (tars / "shard-000099.tar.gz").rename(tars / "shard-000099.tar")
    with pytest.raises(WorkError, match=r"shard-000099.tar: compressed with gzip"):
        adopted(tars)


def test_a_label_that_no_sample_has_is_told_with_what_there_is(tars: Path) -> None:
    with pytest.raises(WorkError, match=r"none of the 100 .*no .txt .*\(cls, jpg is all it has\)"):
        adopted(tars, label="txt")
    for rule in ("json", "json:", "json:a..b", "png"):
        with pytest.raises(UsageError, match=r"must be cls, txt or json:KEY"):
            adopted(tars, label=rule)


def test_damage_of_an_adopted_tar_is_found_and_its_sample_named(tars: Path) -> None:
    apart = tars.parent / "apart"
    adopted(tars, apart)
    file = tars / "shard-000007.tar"
    data = bytearray(file.read_bytes())
    at = parse_index((apart / "shard-000007.idx").read_bytes())[0].components[0].offset + 300
    data[at] ^= 1
    file.write_bytes(data)
    assert any("sample sample000035: its bytes are not" in line for line in faults(apart))
    data[at] ^= 1
    file.write_bytes(data)
    # An index that leaves a sample out, or points at the tar of others, is found as well.
    index = apart / "shard-000007.idx"
    lines = index.read_text().splitlines()
    index.write_text("\n".join(["v1.2 4", *lines[1:-1]]) + "\n")
    assert any("shard-000007.tar: holds 4 samples, not 5" in line for line in faults(apart))
    index.write_bytes((apart / "shard-000008.idx").read_bytes())
    assert any("does not say what" in line for line in faults(apart))


def test_a_report_of_an_adopted_dataset_says_what_it_is(tars: Path, tmp_path: Path) -> None:
    adopted(tars)
    page = write_report(open_place(tars), tmp_path / "report").read_text()
    assert "100 samples in 20 tars" in page
    assert "ABID" not in page


def test_on_s3_it_is_the_same_beside_and_apart(tars: Path, tmp_path: Path, s3: str) -> None:
    copy(open_place(tars), open_place(f"{s3}/tars"))
    adopted(tars)
    adopted(f"{s3}/tars")
    for name in ("dataset.json", "shard-000011.idx", "catalog.parquet"):
        assert open_place(f"{s3}/tars").get(name) == (tars / name).read_bytes()
    apart = tmp_path / "apart"
    assert adopted(f"{s3}/tars", apart).dataset.tars == f"{s3}/tars"
    cache = tmp_path / "cache"
    order = taken(loader(apart, cache=cache))
    assert len(order) == 12
    assert order == taken(loader(f"{s3}/tars", cache=cache))
    assert faults(apart) == faults(f"{s3}/tars") == []
    with pytest.raises(UsageError, match="cannot point at a folder of this machine"):
        adopted(tars, f"{s3}/dataset")


@pytest.mark.slow
def test_the_command_adopts_in_many_processes(tars: Path, run: Command) -> None:
    result = run("bintally", "adopt", tars, check=True)
    assert "train            100 samples in 20 shards" in result.stdout
    assert "4 classes, counts from 0 to 3" in result.stdout
    once = contents(tars)
    assert "nothing written" in run("sharding", "adopt", tars, check=True).stdout
    assert contents(tars) == once
    assert read_dataset(tars).is_adopted
    assert run("sharding", "adopt", tars, "--label", "png").returncode == 2
