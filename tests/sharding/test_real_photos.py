"""The real photos, where they are at hand, become a dataset."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bintally.dataset.manifest import SPLITS
from sharding.planning.options import Options
from tests.sharding.building.test_build import catalog, make, samples_in_tars, true_counts


def test_the_real_photos_are_sharded_whole(abid: Path, tmp_path: Path) -> None:
    folder = make(abid / "bucket224", tmp_path / "made", workers=2, options=Options())
    counts, rows, samples = (
        true_counts(abid / "bucket224"),
        catalog(folder),
        samples_in_tars(folder),
    )
    assert {id_: count for id_, (_, count, _) in samples.items()} == {
        id_: count for id_, count in counts.items() if count <= 5
    }
    assert Counter(row["status"] for row in rows.values()) == {"sharded": 5425, "excluded": 2576}
    whole = Counter(count for _, count, _ in samples.values())
    for split in SPLITS:
        own = Counter(count for s, count, _ in samples.values() if s == split)
        for c in whole:
            assert abs(own[c] / own.total() - whole[c] / whole.total()) < 0.01


def test_the_two_series_of_real_names_stay_apart(abid: Path, tmp_path: Path) -> None:
    folder = make(abid / "bucket224", tmp_path / "made", workers=2, options=Options(max_count=200))
    samples = samples_in_tars(folder)
    counts = [samples[id_][1] for id_ in ("1", "00001", "10", "00010", "100", "00100")]
    assert counts == [0, 12, 0, 4, 0, 1]


def test_real_photos_without_metadata_are_listed(abid: Path, tmp_path: Path) -> None:
    rows = catalog(make(abid / "bucket", tmp_path / "made", options=Options()))
    orphans = [id_ for id_, row in rows.items() if row["status"] == "orphan-image"]
    assert len(orphans) == 17
    assert sum(len(id_) < 5 for id_ in orphans) == 5
