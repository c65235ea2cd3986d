"""The page of the dataset report: what its reader may rely on."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from bintally.dataset.manifest import Split, read_dataset
from bintally.errors import UsageError, WorkError
from bintally.storage.opening import open_place
from sharding.report.page import render_dataset_report, write_report
from sharding.report.statistics import Statistics
from tests.conftest import contents
from tests.html_page import Page
from tests.sharding.report.catalogs import dataset_of, row, small_catalog, summary

FIGURES = {"quantity.png", "repetition.png", "classes.png", "sizes.png"}


def _render(statistics: Statistics, title: str = "A bucket") -> str:
    return render_dataset_report(statistics, title)[0]


@pytest.fixture(scope="module")
def small() -> tuple[str, dict[str, bytes]]:
    """The page and the figures of the small catalog; drawing them takes a second or two."""
    return render_dataset_report(summary(*small_catalog()), "A bucket")


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
    rows, dataset = small_catalog()
    rows[7] |= {"id": attack, "reason": f"metadata is <script>{attack}"}
    rows[4]["reason"] = rows[1]["reason"] = attack
    rows[3]["status"] = attack
    options, source = {attack: attack}, {attack: attack}
    splits = {attack: dataset.splits["train"], **dataset.splits}
    dataset = replace(dataset, options=options, source=source, splits=splits)
    html = _render(summary(rows, dataset), attack)
    assert "<script" not in html
    assert "script" not in Page(html).tags
    assert Page(html).text.count(attack) >= 8


def test_same_input_gives_the_same_bytes_and_leaves_matplotlib_as_it_was(
    small: tuple[str, dict[str, bytes]],
) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "path", "font.size": 23.0}):
        before = dict(matplotlib.rcParams)
        report = render_dataset_report(summary(*small_catalog()), "A bucket")
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
    html, figures = render_dataset_report(summary([], dataset_of()), "Nothing")
    text = Page(html).text
    assert "There is no bin here whose metadata can be read." in text
    assert "Nothing was quarantined" in text
    assert "no products" in text
    assert "no photos" in text
    assert figures.keys() == FIGURES


def test_bins_without_products_or_quarantine() -> None:
    rows = [row(f"0000{n}", 0, "", group=f"0000{n}", split="train", bytes=9) for n in range(3)]
    text = Page(_render(summary(rows, dataset_of(train=[3, 0, 0])))).text
    assert "3 bins hold 0.0 items on average" in text
    assert "They show" not in text
    assert "one photo 0 – 35.7%" in text
    assert "0.00 in a bin, on average" in text


def test_many_classes_scroll_and_huge_quantities_do_not_stretch_the_figure() -> None:
    rows = [row(f"{n:05d}", n % 112, "A", split="train", bytes=n) for n in range(1, 1000)]
    rows[0]["count"] = 1_000_000
    counts = {str(count): 1 for count in range(112)}
    dataset = replace(
        dataset_of(),
        classes=[*range(112)],
        splits={"train": Split(112, counts, []), "test": Split(0, counts, [])},
    )
    statistics = summary(rows, dataset)
    assert max(statistics.quantities.bars) <= 111
    assert statistics.quantities.open_ended
    assert 'class="scroll tall"' in _render(statistics)


def test_a_dataset_built_without_groups_says_so() -> None:
    rows, dataset = small_catalog()
    options = {**dataset.options, "group": "none"}
    text = Page(_render(summary(rows, replace(dataset, options=options)))).text
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


def test_names_and_columns_that_labels_bring_are_described() -> None:
    rows = [
        row(
            f"{n}",
            None,
            None,
            split="train" if label else None,
            bytes=9,
            label=label,
            weather="dry",
        )
        for n, label in enumerate(("amber", "blue", "blue", None))
    ]
    dataset = replace(
        dataset_of(),
        classes=["amber", "blue"],
        splits={"train": Split(3, {"amber": 1, "blue": 2}, [])},
    )
    statistics = summary(rows, dataset)
    assert statistics.bins == 3
    assert statistics.quantity is None
    assert statistics.splits["train"].class_counts == {"amber": 1, "blue": 2}
    html, figures = render_dataset_report(statistics, "Names")
    assert "3 photos of 2 classes" in Page(html).text
    assert "blue 2 66.7%" in Page(html).text
    assert "tars" not in Page(html).text
    assert "bins" not in Page(html).text
    assert figures.keys() == {"classes.png", "sizes.png"}


def test_only_a_report_is_written_over(
    shards: Path, tmp_path: Path, small: tuple[str, dict[str, bytes]]
) -> None:
    place, folder = open_place(shards), tmp_path / "report"
    page = folder / "report.html"
    folder.mkdir()
    (folder / "notes.txt").write_text("…")
    (folder / "sizes.png").write_bytes(small[1]["sizes.png"])
    for foreign in (None, "<!doctype html>\n<title>A thesis</title>"):
        if foreign is not None:
            page.write_text(foreign)
        before = contents(folder)
        with pytest.raises(UsageError, match=r"no `bintally report` wrote it; move it away, or"):
            write_report(place, folder)
        assert contents(folder) == before
    # An earlier report is, also one that was interrupted before it had all figures.
    page.write_text(small[0])
    write_report(place, folder)
    after = contents(folder)
    assert after.keys() == {"report.html", "notes.txt", *FIGURES}
    assert after["report.html"] != small[0].encode()


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
