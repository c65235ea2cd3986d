"""The cards together: what is true of both."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest

from bintally.dataset.catalog import read_catalog
from bintally.dataset.manifest import Dataset, read_dataset
from sharding.card.card import CROISSANT, README, make_cards
from tests.sharding.card.examples import COUNTS, LEFT_OUT, NAMES, catalog_of


@pytest.mark.parametrize("dataset", [COUNTS, NAMES])
def test_the_same_dataset_has_the_same_cards(dataset: Dataset) -> None:
    catalog = catalog_of(dataset, LEFT_OUT)
    cards = make_cards(dataset, catalog)
    assert set(cards) == {README, CROISSANT}
    in_pieces = pa.concat_tables([catalog.slice(0, 3), catalog.slice(3)])
    plain = catalog.set_column(
        catalog.column_names.index("status"), "status", catalog["status"].cast(pa.string())
    )
    assert make_cards(dataset, in_pieces) == make_cards(dataset, plain) == cards
    shuffled = catalog.take(pa.array(range(len(catalog)))[::-1])
    assert make_cards(dataset, shuffled) == cards


def test_the_cards_say_how_many_photos_there_are_of_what() -> None:
    cards = make_cards(COUNTS, catalog_of(COUNTS))
    said = "11 JPEG photos, each labelled with a count, in 3 WebDataset shards (0.0 MB)."
    metadata = json.loads(cards[CROISSANT])
    assert metadata["name"] == "Photos labelled with a count, 0 to 2"
    assert metadata["description"] == said
    assert f"# {metadata['name']}\n\n{said}\n" in cards[README].decode()
    assert (
        json.loads(make_cards(NAMES, catalog_of(NAMES))[CROISSANT])["name"] == "Photos in 3 classes"
    )


def test_the_cards_of_a_build_hold_no_address_and_no_time(
    dataset: Path, small_bucket: Path
) -> None:
    catalog = read_catalog((dataset / "catalog.parquet").read_bytes())
    cards = make_cards(read_dataset(dataset), catalog)
    text = b"".join(cards.values()).decode()
    assert "quarantined" in text
    for place in (dataset, small_bucket):
        assert str(place) not in text
        assert place.name not in text
    assert "://" not in cards[README].decode()
    vocabularies = {"schema.org", "mlcommons.org", "purl.org"}
    assert {*re.findall(r"\w+://([^/\"]+)", text)} == vocabularies
    assert not re.search(r"\b20\d\d-\d\d", text)
