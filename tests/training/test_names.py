"""Classes that are names, of tars that others wrote: trained, evaluated and answered with."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bintally.counting.counter import Counter
from bintally.errors import UsageError
from serving.answer import make_answer
from tests.conftest import Command
from tests.foreign_tars import COLOURS, adopted, photo, write_as_img2dataset
from tests.training.runs import SMALL, settings
from training.config import FitConfig
from training.fit import fit
from training.inference.export import export
from training.inference.measure import measure
from tuning.config import SearchConfig
from tuning.space import ORIGINAL

NAMES = sorted(COLOURS)


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of three names, in three splits."""
    folder = tmp_path_factory.mktemp("named")
    for split, shards in (("train", 4), ("val", 2), ("test", 2)):
        write_as_img2dataset(folder / split, shards, 12)
    adopted(folder, label="json:label.name")
    return folder


@pytest.fixture(scope="module")
def run_of_names(named: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    fit(settings(named, run, balance="order", epochs=8, lr=0.01))
    return run


def test_a_run_on_names_is_evaluated_and_leaves_out_what_needs_counts(
    named: Path, run_of_names: Path
) -> None:
    summary, folder = measure(run_of_names / "best.pt", str(named), "test", None)
    assert summary is not None
    assert summary["classes"] == NAMES
    assert summary["samples"] == 24
    assert summary["accuracy"] > 0.9
    assert summary["rmse"] is summary["mae"] is summary["within_one"] is None
    assert summary["baseline"]["count"] == "amber"
    assert summary["baseline"]["accuracy"] == pytest.approx(1 / 3)
    page = (folder / "report.html").read_text()
    assert "needs counts" in page
    assert "class 207" in page
    lines = (run_of_names / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["validation"]["rmse"] is None


def test_answers_are_names(named: Path, run_of_names: Path, tmp_path: Path) -> None:
    counter = Counter(run_of_names / "best.pt", device="cpu")
    assert counter.classes == NAMES
    blue, damaged = counter.count([photo(99, COLOURS["blue"]), b"no photo"])
    assert blue.label == "blue"
    assert blue.count is blue.expected is None
    assert blue.confidence == blue.probabilities["blue"] > 0.5
    assert set(blue.to_dict()) == {"label", "confidence", "probabilities"}
    assert damaged.label is None
    assert damaged.error is not None
    answer = make_answer([0.1, 0.8, 0.1], NAMES, "argmax", 3)
    assert answer["label"] == "blue"
    assert answer["verdict"] == "unsure"
    with pytest.raises(UsageError, match="tells names apart"):
        export(run_of_names / "best.pt", tmp_path / "x.onnx")


@pytest.mark.slow
def test_the_commands_show_names(named: Path, run_of_names: Path, run: Command) -> None:
    checkpoint = ["--checkpoint", run_of_names / "best.pt", "--shards", named]
    told = run("bintally", "evaluate", *checkpoint, "--output", named.parent / "e", check=True)
    assert "needs counts" in told.stdout
    assert "always amber" in told.stdout
    output = named.parent / "answers.parquet"
    run("bintally", "predict", *checkpoint, "--output", output, check=True)
    table = pq.read_table(output)
    assert table.column_names[:5] == ["id", "label", "answer", "confidence", "probability_amber"]
    assert {*table["label"].to_pylist()} == {*NAMES}


@pytest.mark.parametrize(
    ("more", "flag"),
    [
        ({"loss": "ordinal"}, "--loss ordinal"),
        ({"best_metric": "rmse"}, "--best-metric rmse"),
        ({"best_metric": "within_one"}, "--best-metric within_one"),
    ],
)
def test_what_needs_counts_is_refused(
    named: Path, tmp_path: Path, more: dict[str, str], flag: str
) -> None:
    with pytest.raises(UsageError, match=rf"{flag}: needs counts, and the classes of .* are names"):
        fit(FitConfig(str(named), tmp_path / "run", **(SMALL | more)))


def test_a_search_for_what_needs_counts_is_refused(tmp_path: Path) -> None:
    config = SearchConfig("shards", tmp_path / "search", metric="mae")
    with pytest.raises(UsageError, match=r"--metric mae: needs counts"):
        config.check_space(ORIGINAL, NAMES)
    config.check_space(ORIGINAL, [0, 1, 2])
