"""The format: what is written is read back, and what is damaged is named."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bintally.dataset.index import format_index, parse_index
from bintally.dataset.manifest import Dataset, Shard, Split, read_dataset
from bintally.errors import UsageError, WorkError
from bintally.storage.opening import open_place
from sharding.tar import TarBuilder

ids = st.text("0123456789abcXYZ_-", min_size=1, max_size=90)
files = st.lists(
    st.tuples(st.sampled_from(["jpg", "cls", "json"]), st.binary(max_size=2000)),
    min_size=1,
    max_size=3,
    unique_by=lambda file: file[0],
)


@given(st.dictionaries(ids, files, max_size=5))
def test_an_index_leads_to_every_byte_of_its_tar(
    samples: dict[str, list[tuple[str, bytes]]],
) -> None:
    builder = TarBuilder()
    for id_, parts in samples.items():
        builder.add(id_, parts)
    tar = b"".join(builder.finish())
    read = parse_index(format_index(builder.samples))
    assert [sample.id for sample in read] == list(samples)
    for sample in read:
        for extension, data in samples[sample.id]:
            part = sample[extension]
            assert part.offset % 512 == 0
            assert tar[part.offset : part.offset + part.size] == data
            assert part.name == f"{sample.id}.{extension}"


@given(st.dictionaries(ids, files, max_size=5))
def test_a_tar_is_byte_for_byte_what_tarfile_makes(
    samples: dict[str, list[tuple[str, bytes]]],
) -> None:
    builder = TarBuilder()
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for id_, parts in samples.items():
            builder.add(id_, parts)
            for extension, data in parts:
                member = tarfile.TarInfo(f"{id_}.{extension}")
                member.size, member.mode = len(data), 0o644
                tar.addfile(member, io.BytesIO(data))
    assert b"".join(builder.finish()) == sink.getvalue()


@given(st.binary(max_size=200))
def test_no_bytes_end_otherwise_than_in_an_index_or_a_reason(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(parse_index(data), list)


def test_an_index_cut_short_is_no_index(shards: Path) -> None:
    data = min(shards.glob("train/*.idx")).read_bytes()
    for end in range(0, len(data), 7):
        with pytest.raises(ValueError, match=r"begins|announces|line|literal"):
            parse_index(data[:end])


def test_the_summary_is_read_back_as_it_was_written(shards: Path) -> None:
    dataset = read_dataset(open_place(shards))
    assert dataset.to_json() == (shards / "dataset.json").read_bytes()


def test_the_summary_tells_nothing_of_the_machine(shards: Path, bucket: Path) -> None:
    text = (shards / "dataset.json").read_text()
    assert str(bucket) not in text
    assert str(shards) not in text
    assert set(json.loads(text)) == {
        *("format", "classes", "seed", "source", "options", "splits", "files")
    }


def test_an_unfinished_or_damaged_dataset_is_one_clear_error(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        read_dataset(open_place(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="empty"):
        read_dataset(open_place(tmp_path))
    (tmp_path / "train").mkdir()
    (tmp_path / "train/train-000000.tar").write_bytes(b"begun")
    with pytest.raises(WorkError, match=r"no dataset\.json, so this is no complete dataset"):
        read_dataset(open_place(tmp_path))
    whole = (shards / "dataset.json").read_bytes()
    odd = json.dumps(json.loads(whole) | {"classes": ["0", 1.0]}).encode()
    for damaged in (b"", b"{}", b"[]", whole[:500], odd):
        (tmp_path / "dataset.json").write_bytes(damaged)
        with pytest.raises(WorkError, match="not readable"):
            read_dataset(open_place(tmp_path))


def test_what_an_older_version_wrote_is_the_same_dataset(shards: Path) -> None:
    data = (shards / "dataset.json").read_bytes()
    older = {key: value for key, value in json.loads(data).items() if key != "files"}
    mine, theirs = Dataset.from_json(data), Dataset.from_json(json.dumps(older).encode())
    assert mine.files.keys() == {"catalog.parquet", "README.md", "croissant.json"}
    assert mine.sha256 == theirs.sha256
    assert json.loads(theirs.to_json()) == older


a_shard = st.builds(
    Shard,
    st.text(),
    st.text(),
    st.integers(0),
    st.integers(0),
    st.text(),
    st.dictionaries(st.text(), st.integers(0)),
)


@given(st.lists(st.lists(a_shard, max_size=3), min_size=1, max_size=3))
def test_its_text_is_what_json_makes_of_it(splits: list[list[Shard]]) -> None:
    dataset = Dataset(
        ["a", "é"], 0, {}, {}, {f"s{i}": Split(1, {"é": 1}, s) for i, s in enumerate(splits)}
    )
    value = json.loads(dataset.to_json())
    assert dataset.to_json().decode() == json.dumps(value, indent=1) + "\n"
    assert [split["shards"] for split in value["splits"].values()] == [
        [vars(shard) for shard in shards] for shards in splits
    ]
