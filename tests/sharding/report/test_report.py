"""The dataset report: its numbers, and what a reader of the page may rely on."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from bintally.dataset.catalog import CatalogRow
from bintally.dataset.manifest import SPLITS, Dataset, Shard, Split, read_dataset
from bintally.errors import UsageError, WorkError
from bintally.storage.opening import open_place
from sharding.report.page import render_dataset_report, write_report
from sharding.report.statistics import Reason, Spread, Statistics, summarize_catalog
from tests.conftest import contents
from tests.html_page import Page

FIGURES = {"quantity.png", "repetition.png", "classes.png", "sizes.png"}


def _dataset(**counts: list[int]) -> Dataset:
    """Of the classes 0 to 2; `counts` gives the number of each by split."""
    splits = {}
    for name in SPLITS:
        numbers = counts.get(name, [0, 0, 0])
        by_class = {str(count): number for count, number in enumerate(numbers)}
        shard = Shard(f"{name}.tar", f"{name}.idx", sum(numbers), 10240, "a" * 64, by_class)
        splits[name] = Split(sum(numbers), by_class, [shard] if sum(numbers) else [])
    options = {"max_count": 2, "group": "neighbours"}
    return Dataset([0, 1, 2], 0, {"images": 9, "sha256": "b" * 64}, options, splits)


def _row(id_: str, count: int | None, skus: str | None, **values: object) -> CatalogRow:
    row = CatalogRow(id_, count, skus=None if skus is None else tuple(skus))
    for name, value in values.items():
        setattr(row, name, value)
    return row


def _small() -> tuple[list[CatalogRow], Dataset]:
    """Seven bins, six of them with products A to D, beside two objects that are no bins."""
    large = {"split": "train", "bytes": 3000, "width": 500, "height": 300}
    small = {"split": "test", "bytes": 1000, "width": 300, "height": 200}
    rows = [
        _row("00001", 2, "AB", group="00001", **large),
        _row("00002", 1, "A", group="00001", **large, reason="grey, stored as RGB"),
        _row("00003", 0, "", group="00001", **small),
        _row("00005", 2, "A", group="00005", **small),
        _row("00007", 9, "BC", group="00007", bytes=5000),
        _row("00008", 28, "CD", group="00008", bytes=4000),
        _row("00009", 0, "", group="00009", bytes=0),
        _row("00010", None, None, bytes=700),
        _row("00011", None, None, bytes=800),
    ]
    for row in rows[4:6]:
        row.put_aside("excluded", "count is above --max-count 2")
    rows[6].put_aside("quarantined", "photo has zero bytes")
    rows[7].put_aside("quarantined", "metadata is not JSON")
    rows[8].put_aside("orphan-image", "no metadata/00011.json")
    return rows, _dataset(train=[0, 1, 1], test=[1, 0, 1])


def _render(statistics: Statistics, title: str = "A bucket") -> str:
    return render_dataset_report(statistics, title)[0]


@pytest.fixture(scope="module")
def small() -> tuple[str, dict[str, bytes]]:
    """The page and the figures of the small catalog; drawing them takes a second or two."""
    return render_dataset_report(summarize_catalog(*_small()), "A bucket")


def _five(spread: Spread | None) -> list[float]:
    assert spread is not None
    return [spread.mean, spread.p5, spread.median, spread.p95, spread.largest]


def test_the_numbers_of_a_small_catalog() -> None:
    statistics = summarize_catalog(*_small())
    assert statistics.statuses == {
        "excluded": 2, "orphan-image": 1, "quarantined": 2, "sharded": 4,
    }  # fmt: skip
    # A bin counts if its metadata is known, even where its photo is damaged.
    assert (statistics.bins, statistics.empty_bins, statistics.bins_with_few) == (7, 2, 6)
    assert _five(statistics.quantity) == pytest.approx([6, 0, 2, 22.3, 28])
    assert statistics.quantities.bars == {0: 2, 1: 1, 2: 2, 9: 1, 28: 1}
    assert statistics.products == 4
    assert statistics.repetition == {1: 1, 2: 2, 3: 1}
    assert [statistics.shown(1, 1), statistics.shown(2, 2), statistics.shown(3, 9)] == [1, 2, 1]
    assert statistics.products_per_bin == 8 / 7
    groups = (statistics.groups, statistics.photos_in_groups, statistics.largest_group)
    assert groups == (1, 3, 3)


def test_the_numbers_of_the_photos_are_of_bins_only() -> None:
    sizes = summarize_catalog(*_small()).sizes
    assert _five(sizes["bytes"]) == pytest.approx([17_000 / 7, 300, 3000, 4700, 5000])
    assert _five(sizes["width"]) == pytest.approx([400, 300, 400, 500, 500])
    assert _five(sizes["height"]) == pytest.approx([250, 200, 250, 300, 300])


def test_the_numbers_of_the_splits() -> None:
    splits = summarize_catalog(*_small()).splits
    assert {name: (s.samples, s.shards) for name, s in splits.items()} == {
        "train": (2, 1), "validation": (0, 0), "test": (2, 1),
    }  # fmt: skip
    assert splits["train"].class_counts == {0: 0, 1: 1, 2: 1}
    assert [splits[name].mean_quantity for name in SPLITS] == [1.5, None, 1.0]
    assert [splits[name].products for name in SPLITS] == [2, 0, 1]


def test_reasons_that_differ_in_their_details_are_one() -> None:
    reasons = [
        "EXPECTED_QUANTITY is -3, below zero",
        "EXPECTED_QUANTITY is -17, below zero",
        'EXPECTED_QUANTITY is "many", not a whole number',
        'EXPECTED_QUANTITY is "a very, very long wo…, not a whole number',
        "EXPECTED_QUANTITY is [1, 2], not a whole number",
        "EXPECTED_QUANTITY is 2.5, not a whole number",
        "photo has 9000x8000 pixels, more than 50,000,000",
        "photo does not decode: 12 extraneous bytes before marker 0xd9",
        "photo does not decode: 7 extraneous bytes before marker 0xda",
        "bin-images/x9.jpg vanished before it was fetched",
        "bin-images/x10.jpg vanished before it was fetched",
    ]
    rows = [CatalogRow(f"x{number}") for number in range(len(reasons))]
    for row, reason in zip(rows, reasons, strict=True):
        row.put_aside("quarantined", reason)
    assert summarize_catalog(rows, _dataset()).reasons["quarantined"] == [
        Reason("EXPECTED_QUANTITY is …, not a whole number", 4, ["x2", "x3", "x4"]),
        Reason("EXPECTED_QUANTITY is …, below zero", 2, ["x0", "x1"]),
        Reason("bin-images/….jpg vanished before it was fetched", 2, ["x9", "x10"]),
        Reason("photo does not decode: … extraneous bytes before marker …", 2, ["x7", "x8"]),
        Reason("photo has … pixels, more than …", 1, ["x6"]),
    ]


def test_options_and_conversions_keep_their_words() -> None:
    reasons = summarize_catalog(*_small()).reasons
    excluded = [Reason("count is above --max-count 2", 2, ["00007", "00008"])]
    assert reasons["excluded"] == excluded
    assert reasons["sharded"] == [Reason("grey, stored as RGB", 1, ["00002"])]


def test_page_says_what_the_statistics_say(small: tuple[str, dict[str, bytes]]) -> None:
    text = Page(small[0]).text
    assert "7 bins hold 6.0 items on average, and 85.7% hold fewer than 10 ." in text
    assert "They show 4 products, 25.0% of them in one photo only." in text
    assert "Photos 7 2 0 2 535,234" in text
    assert "Items in a bin, on average 6.00 1.50 – 1.00 5.1" in text
    assert "three or more 1 25.0% 28.5%" in text
    assert "width and height only of 4 in the shards" in text
    assert "1 converted: grey, stored as RGB" in text
    assert "metadata is not JSON 1 00010" in text
    assert "Photos in them 42.9%" in text


def test_page_is_whole_and_loads_nothing(small: tuple[str, dict[str, bytes]]) -> None:
    page = Page(small[0])
    assert all(address.startswith("#") for address in page.loads)
    assert {address[1:] for address in page.loads} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "script" not in page.tags


def test_untrusted_text_is_escaped() -> None:
    attack = "\"'><script>alert(1)</script>{{ 7 * 7 }}$x$"
    rows, dataset = _small()
    rows[7].id = attack
    rows[7].reason = f"metadata is <script>{attack}"
    rows[4].reason = rows[1].reason = attack
    rows[3].status = attack
    options, source = {attack: attack}, {attack: attack}
    splits = {attack: dataset.splits["train"], **dataset.splits}
    dataset = replace(dataset, options=options, source=source, splits=splits)
    html = _render(summarize_catalog(rows, dataset), attack)
    assert "<script" not in html
    assert "script" not in Page(html).tags
    assert Page(html).text.count(attack) >= 8


def test_same_input_gives_the_same_bytes_and_leaves_matplotlib_as_it_was(
    small: tuple[str, dict[str, bytes]],
) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "path", "font.size": 23.0}):
        before = dict(matplotlib.rcParams)
        report = render_dataset_report(summarize_catalog(*_small()), "A bucket")
        assert dict(matplotlib.rcParams) == before
    assert report == small


def _check_png(data: bytes) -> None:
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", data[16:24])
    assert 600 <= width <= 2400
    assert 400 <= height <= 800
    assert 5_000 < len(data) < 300_000


def test_figures_are_png_pictures(small: tuple[str, dict[str, bytes]]) -> None:
    figures = small[1]
    assert figures.keys() == FIGURES
    for png in figures.values():
        _check_png(png)


def test_a_bucket_with_nothing_to_tell_still_has_a_page() -> None:
    html, figures = render_dataset_report(summarize_catalog([], _dataset()), "Nothing")
    text = Page(html).text
    assert "There is no bin here whose metadata can be read." in text
    assert "Nothing was quarantined" in text
    assert "no products" in text
    assert "no photos" in text
    assert figures.keys() == FIGURES


def test_bins_without_products_or_quarantine() -> None:
    rows = [_row(f"0000{n}", 0, "", group=f"0000{n}", split="train", bytes=9) for n in range(3)]
    text = Page(_render(summarize_catalog(rows, _dataset(train=[3, 0, 0])))).text
    assert "3 bins hold 0.0 items on average" in text
    assert "They show" not in text
    assert "one photo 0 – 35.7%" in text
    assert "0.00 in a bin, on average" in text


def test_many_classes_scroll_and_huge_quantities_do_not_stretch_the_figure() -> None:
    rows = [_row(f"{n:05d}", n % 112, "A", split="train", bytes=n) for n in range(1, 1000)]
    rows[0].count = 1_000_000
    counts = {str(count): 1 for count in range(112)}
    dataset = replace(
        _dataset(),
        classes=[*range(112)],
        splits={"train": Split(112, counts, []), "test": Split(0, counts, [])},
    )
    statistics = summarize_catalog(rows, dataset)
    assert max(statistics.quantities.bars) <= 111
    assert statistics.quantities.open_ended
    assert 'class="scroll tall"' in _render(statistics)


def test_a_dataset_built_without_groups_says_so() -> None:
    rows, dataset = _small()
    options = {**dataset.options, "group": "none"}
    text = Page(_render(summarize_catalog(rows, replace(dataset, options=options)))).text
    assert "--group none" in text
    assert "Groups of two or more" not in text


def test_report_of_a_rendered_bucket_agrees_with_its_catalog(shards: Path, tmp_path: Path) -> None:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    before = contents(shards)
    page = write_report(open_place(shards), tmp_path / "new" / "report")
    assert contents(shards) == before
    write_report(open_place(shards), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(page.parent)
    assert {path.name for path in page.parent.iterdir()} == {"report.html", *FIGURES}
    for name in FIGURES:
        _check_png((page.parent / name).read_bytes())

    table = pq.read_table(shards / "catalog.parquet")
    bins = table.filter(pc.is_valid(table["count"]))
    skus = Counter(pc.list_flatten(bins["skus"]).to_pylist())
    few = pc.sum(pc.less(bins["count"], 10)).as_py()
    text = Page(page.read_text()).text
    samples = [split.samples for split in read_dataset(open_place(shards)).splits.values()]
    assert f"Photos {len(bins)} {' '.join(map(str, samples))} 535,234" in text
    assert f"Items in a bin, on average {pc.mean(bins['count']).as_py():.2f} " in text
    assert f"Product categories (SKUs) {len(skus)} " in text
    assert f"Fewer than 10 {few} bins, {few / len(bins):.1%}" in text
    assert f"one photo {sum(number == 1 for number in skus.values())} " in text
    statuses = Counter(table["status"].to_pylist())
    assert {"quarantined", "orphan-image", "orphan-metadata"} < statuses.keys()
    for status, number in statuses.items():
        assert f"{status} {number} " in text
    quarantined = table.filter(pc.equal(table["status"].cast("string"), "quarantined"))
    assert all(f" {id_} " in f"{text} " for id_ in quarantined["id"].to_pylist())


def test_what_cannot_be_described_is_said_in_a_line(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        write_report(open_place(tmp_path / "nowhere"), tmp_path / "report")
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    (dataset / "dataset.json").write_bytes((shards / "dataset.json").read_bytes())
    with pytest.raises(WorkError, match=r"no catalog\.parquet"):
        write_report(open_place(dataset), tmp_path / "report")
    (dataset / "catalog.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(WorkError, match=r"catalog\.parquet: not readable"):
        write_report(open_place(dataset), tmp_path / "report")
    with pytest.raises(UsageError, match="not a folder"):
        write_report(open_place(shards), dataset / "dataset.json")
    assert not (tmp_path / "report").exists()
