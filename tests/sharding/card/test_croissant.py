"""The Croissant metadata is one whole: whatever it names, it describes. (That mlcroissant reads it,
`test_interop.py` shows.)"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from bintally.dataset.manifest import CATALOG, Dataset
from sharding.card.card import CROISSANT, make_cards
from sharding.card.croissant import croissant
from tests.sharding.card.examples import COUNTS, NAMES, catalog_of, dataset_of


def metadata(dataset: Dataset, columns: Mapping[str, pa.Array] | None = None) -> dict[str, Any]:
    catalog = catalog_of(dataset, columns=columns)
    value: dict[str, Any] = json.loads(make_cards(dataset, catalog)[CROISSANT])
    return value


def objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from objects(part)


def described(value: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    """The things of a kind, by @id."""
    return {o["@id"]: o for o in objects(value) if o.get("@type") == kind}


def catalog_fields(value: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By the columns' names."""
    fields = described(value, "cr:RecordSet")["catalog"]["field"]
    return {field["source"]["extract"]["column"]: field for field in fields}


def check_whole(value: dict[str, Any]) -> None:
    """Every @id is given once and is a plain one, and every reference leads to one."""
    body = {name: part for name, part in value.items() if name != "@context"}
    named = [o["@id"] for o in objects(body) if len(o) > 1 and "@id" in o]
    assert len(named) == len({*named})
    assert {o["@id"] for o in objects(body) if set(o) == {"@id"}} <= {*named}
    assert all(name and not set(name) - SAFE for name in named)


SAFE = {*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./"}


def test_every_tar_is_described_with_its_size_and_sha256() -> None:
    value = metadata(COUNTS)
    check_whole(value)
    files = described(value, "cr:FileObject")
    for split in COUNTS.splits.values():
        for shard in split.shards:
            file = files.pop(shard.path)
            assert file["contentUrl"] == shard.path
            assert file["sha256"] == shard.sha256
            assert file["contentSize"] == f"{shard.bytes} B"
    assert files[CATALOG]["sha256"] == COUNTS.files[CATALOG]


def test_a_hundred_thousand_tars_are_described_in_a_few_lines() -> None:
    dataset = dataset_of([0], {"train": [[1]] * 80_000, "test": [[1]] * 20_000})
    cards = make_cards(dataset, catalog_of(COUNTS))
    value = json.loads(cards[CROISSANT])
    check_whole(value)
    assert len(cards[CROISSANT]) < 20_000
    assert described(value, "cr:FileSet")["tars"]["includes"] == ["test/*.tar", "train/*.tar"]


def test_the_splits_that_have_shards_are_enumerated() -> None:
    splits = described(metadata(COUNTS), "cr:RecordSet")["splits"]
    assert splits["dataType"] == "cr:Split"
    assert splits["data"] == [
        {"splits/name": "train", "splits/url": "cr:TrainingSplit"},
        {"splits/name": "test", "splits/url": "cr:TestSplit"},
    ]


def test_a_label_is_a_count_or_a_name() -> None:
    counted, named = (described(metadata(d), "cr:Field") for d in (COUNTS, NAMES))
    assert counted["samples/count"]["dataType"] == ["sc:Integer", "cr:Label"]
    assert named["samples/label"]["dataType"] == ["sc:Text", "cr:Label"]


def test_what_nobody_knows_is_not_said() -> None:
    assert not {"license", "url", "datePublished", "creator", "version"} & metadata(COUNTS).keys()


def test_a_users_columns_are_described_by_their_types() -> None:
    rows = len(catalog_of(COUNTS))
    types = {
        "sc:Text": [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())],
        "sc:Integer": [pa.int8(), pa.uint64()],
        "sc:Float": [pa.float32(), pa.float64(), pa.decimal128(9, 2)],
        "sc:Boolean": [pa.bool_()],
        "sc:Date": [pa.date32()],
        "sc:DateTime": [pa.timestamp("us", "UTC")],
        "sc:Time": [pa.time64("us")],
    }
    named = {str(t): (t, said) for said, those in types.items() for t in those}
    columns = {name: pa.nulls(rows, kind) for name, (kind, _) in named.items()}
    columns["of lists"] = pa.nulls(rows, pa.list_(pa.list_(pa.int32())))
    columns["of structs"] = pa.nulls(rows, pa.struct([("a", pa.int32())]))
    columns["of bytes"] = pa.nulls(rows, pa.binary())
    value = metadata(COUNTS, columns)
    check_whole(value)
    fields = catalog_fields(value)
    assert {name: fields[name]["dataType"] for name in named} == {
        name: said for name, (_, said) in named.items()
    }
    assert fields["of lists"] | {"isArray": True, "arrayShape": "-1,-1"} == fields["of lists"]
    # Croissant has no name for these.
    assert not {"of structs", "of bytes"} & fields.keys()


@given(st.lists(st.text(st.characters(codec="utf-8")), max_size=6, unique=True))
def test_a_users_columns_may_have_any_names(names: list[str]) -> None:
    own = [(name, pa.int32()) for name in names if name not in REFERRED_TO]
    columns = [(name, pa.string()) for name in REFERRED_TO]
    value = croissant(COUNTS, pa.schema([*columns, *own]), "title", "summary")
    check_whole(value)
    # There is no way to point at a column without a name.
    assert {*names} - {""} == catalog_fields(value).keys() - {*REFERRED_TO} | {*names} & {
        *REFERRED_TO
    }


REFERRED_TO = ("id", "split", "count")
