"""What the README's numbers may be relied on for: each is a results file's, and none is stale."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.numbers import Numbers, UnknownNumber, form
from benchmarks.readme import draw, run, untraced
from benchmarks.scaling import read_numbers

NUMBERS = Numbers(
    {
        "loader": {
            "contestants": [
                {
                    "name": "limit",
                    "role": "limit",
                    "metrics": {"photos_per_s": {"median": 1601.2}},
                },
                {
                    "name": "theirs",
                    "role": "peer",
                    "ratio": 1.0,
                    "metrics": {"photos_per_s": {"median": 411.4}},
                },
                {
                    "name": "ours, on 2",
                    "role": "ours",
                    "ratio": 3.5,
                    "metrics": {"photos_per_s": {"median": 1439.7, "maximum": 1553.9}},
                },
                {"name": "broken", "role": "peer", "error": "did not start"},
            ]
        },
        "measured": {"demo_s": {"value": 144, "unit": "s"}, "share": {"value": 0.8999}},
    }
)


@pytest.mark.parametrize(
    ("name", "spec", "shown"),
    [
        ("loader/ours, on 2/photos_per_s", "", "1,440"),
        ("loader/ours, on 2/photos_per_s/maximum", "", "1,554"),
        ("loader/ours, on 2/photos_per_s ÷ loader/theirs/photos_per_s", ".1f", "3.5"),
        ("measured/share", ".0%", "90%"),
        ("measured/demo_s ÷ 100", ".2f", "1.44"),
        ("measured/demo_s", "time", "2.4 min"),
    ],
)
def test_a_number_is_found_by_the_names_of_its_file(name: str, spec: str, shown: str) -> None:
    assert form(NUMBERS.get(name), spec) == shown


@pytest.mark.parametrize(
    "name", ["serving/ours", "loader/none", "loader/ours, on 2", "measured/demo_s/unit"]
)
def test_a_number_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(UnknownNumber, match=name):
        NUMBERS.get(name)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.82, "0.8 s"), (97.3, "97 s"), (215, "3.6 min"), (26_500, "7.4 h"), (9e5, "10 days")],
)
def test_durations_are_in_a_unit_that_people_read(seconds: float, shown: str) -> None:
    assert form(seconds, "time") == shown


def test_stale_numbers_are_written_anew_and_named() -> None:
    text = (
        "It took <!--= measured/demo_s -->99<!--/--> s, <!--= measured/share as .0% -->90%<!--/-->."
    )
    draft = draw(text, NUMBERS)
    assert draft.text == text.replace("99", "144")
    assert draft.stale == ["line 1: measured/demo_s is 144, not 99"]
    assert draw(draft.text, NUMBERS).stale == []


def test_an_unknown_number_is_named_and_left_as_it_was() -> None:
    text = "\nIt took <!--= measured/nothing -->99<!--/--> s."
    draft = draw(text, NUMBERS)
    assert draft.text == text
    assert len(draft.unknown) == 1
    assert draft.unknown[0].startswith("line 2: measured/nothing")


def test_a_table_has_the_fastest_first_and_the_limits_last() -> None:
    head = "<!-- table: loader\nphotos_per_s: photos/s\nratio: × theirs as .2f\n-->\n"
    draft = draw(f"{head}old\n<!-- /table -->", NUMBERS)
    assert draft.text == head + (
        "| loader | photos/s | × theirs |\n"
        "|---|---:|---:|\n"
        "| **ours, on 2** | 1,440 | 3.50 |\n"
        "| theirs | 411 | 1.00 |\n"
        "| broken | – | – |\n"
        "| *limit* | 1,601 | – |\n"
        "<!-- /table -->"
    )
    assert list(untraced(draft.text)) == []


@pytest.mark.parametrize(
    "claim",
    [
        "It makes 757 photos/s.",
        "90% of it",
        "four times: 3.9",
        "in 54\ns",
        "1,440 of them",
        "| **757** | x |",
        "12 × as fast",
        "886 of 900",
    ],
)
def test_what_looks_measured_needs_a_source(claim: str) -> None:
    assert len(list(untraced(f"Text.\n\n{claim}\n"))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "Python 3.11+ and Apache-2.0, CC BY-NC-SA 3.0",
        "`--epochs 10`, 224×224, a split of 60/20/20, on 2 cores",
        "```sh\nsleep 10 s\n```",
        "[all](results/10.5/x.md)",
        "a budget of <!--: setting -->50%<!--/-->",
        "took <!--= measured/demo_s -->144<!--/--> s",
    ],
)
def test_settings_and_versions_need_none(text: str) -> None:
    assert list(untraced(text)) == []


def test_a_readme_is_checked_and_rewritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "README.md"
    file.write_text("Demo: <!--= measured/demo_s as .1f -->99<!--/--> s, 12 s.\n")
    assert run(check=True, path=file, folder=tmp_path) == 1
    told = capsys.readouterr().err
    assert "not 99" in told
    assert "'12 s.'" in told
    assert "index.md" in told
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert "99" in file.read_text()
    assert run(check=False, path=file, folder=tmp_path) == 1, "what has no source stays wrong"
    assert "99" not in file.read_text()
    file.write_text(file.read_text().replace(", 12 s", ""))
    assert run(check=True, path=file, folder=tmp_path) == 0


def test_a_line_that_a_comment_begins_is_refused() -> None:
    (told,) = untraced("It took\n  <!--= measured/demo_s -->144<!--/--> s.\n")
    assert told.startswith("line 2: begins with a comment")


def test_what_is_measured_or_quoted_says_how_or_where() -> None:
    files = read_numbers().files
    for name, entry in files["measured"].items():
        assert entry.keys() == {"value", "unit", "how"}, name
    for name, entry in files["published"].items():
        assert entry.keys() == {"value", "unit", "source"}, name
