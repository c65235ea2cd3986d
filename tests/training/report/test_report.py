"""The training report: what a reader of the page may rely on."""

import base64
import re
from dataclasses import replace
from typing import Any

import pytest

from tests.html_page import Page
from training.report.page import Example, render_run_report


def _epoch(epoch: int) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "step": 25 * epoch,
        "lr": 0.001 / epoch,
        "train": {"samples": 3200, "loss": 1.6 / epoch, "accuracy": 0.3 + 0.05 * epoch},
        "validation": {
            "samples": 1080,
            "loss": 1.5,
            "accuracy": 0.33,
            "rmse": 1.3,
            "mae": 1.0,
            "within_one": 0.7,
        },
        "seconds": 31.2,
        "images_per_s": 103.1,
        "data_wait_share": 0.02,
    }


def _evaluation(num_classes: int = 6, empty: int | None = None) -> dict[str, Any]:
    """Of a model that is right 7 times in 10, else one too many; no photos of count ``empty``."""
    matrix = [[0] * num_classes for _ in range(num_classes)]
    for count in range(num_classes):
        if count != empty:
            matrix[count][count] += 7
            matrix[count][min(count + 1, num_classes - 1)] += 3
    per_class = [
        {"count": count, "samples": 0, "accuracy": None, "precision": None, "rmse": None}
        if count == empty
        else {"count": count, "samples": 10, "accuracy": 0.7, "precision": 0.7, "rmse": 0.55}
        for count in range(num_classes)
    ]
    return {
        "split": "test",
        "samples": 1003,
        "loss": 1.1,
        "accuracy": 0.4513,
        "rmse": 1.0,
        "mae": 0.7,
        "within_one": 0.86,
        "classes": list(range(num_classes)),
        "confusion_matrix": matrix,
        "per_class": per_class,
        "baseline": {"count": 3, "accuracy": 0.249, "rmse": 1.35, "mae": 1.06, "within_one": 0.68},
        "decision": {"rule": "argmax", "temperature": 1.25},
        "argmax": {"accuracy": 0.4513, "rmse": 1.0, "mae": 0.7, "within_one": 0.86},
        "ece": 0.031,
        "ece_uncalibrated": 0.122,
        "checkpoint": {"epoch": 2, "sha256": "c" * 64},
        "dataset": "d" * 64,
    }


_EXAMPLES = [
    Example("00042", b"\xff\xd8 right", count=2, predicted=2, probability=0.83),
    Example("00043", b"\xff\xd8 wrong", count=1, predicted=4, probability=0.57),
]


def _render(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "title": "A run",
        "config": {"backbone": "resnet50", "lr": 0.001, "scale": [0.6, 1.0]},
        "history": [_epoch(epoch) for epoch in (1, 2, 3)],
        "evaluation": _evaluation(),
        "examples": _EXAMPLES,
    }
    return render_run_report(**(arguments | changes))


@pytest.mark.parametrize("num_classes", [6, 112])
def test_page_is_well_formed_and_loads_nothing(num_classes: int) -> None:
    html = _render(evaluation=_evaluation(num_classes))
    page = Page(html)
    assert not re.search(r"https?:|url\((?!#)|@import", html)
    assert page.loads
    assert all(address.startswith(("data:image/", "#")) for address in page.loads)
    assert "script" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", html))
    assert used <= set(page.ids)


def test_headline_says_the_result_in_words() -> None:
    assert (
        "On 1,003 test photos it counts 45.1% exactly right and 86.0% within one; "
        "always answering 3 would get 24.9%."
    ) in Page(_render()).text


def test_every_photo_is_shown_with_its_true_count_and_answer() -> None:
    html = _render()
    page = Page(html)
    assert "✓ Right True 2 Answer 2 Probability 83% 00042" in page.text
    assert "✗ Wrong by 3 True 1 Answer 4 Probability 57% 00043" in page.text
    for example in _EXAMPLES:
        assert base64.b64encode(example.photo).decode() in html
        assert any(example.id in alt for alt in page.alts)


def test_untrusted_text_is_escaped() -> None:
    attack = "\"'><script>alert(1)</script>{{ 7 * 7 }}"
    evaluation = _evaluation() | {"split": attack, "dataset": attack}
    html = _render(
        title=attack,
        config={attack: attack, "nested": {attack: [attack]}},
        evaluation=evaluation,
        examples=[replace(_EXAMPLES[0], id=attack)],
    )
    page = Page(html)
    assert "<script" not in html
    assert "script" not in page.tags
    assert page.text.count(attack) >= 6
    assert any(attack in alt for alt in page.alts)


def test_same_input_gives_the_same_text() -> None:
    assert _render() == _render()
    many = _evaluation(112)
    assert _render(evaluation=many) == _render(evaluation=many)


def test_plots_leave_matplotlib_as_it_was() -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "path", "font.size": 23.0}):
        before = dict(matplotlib.rcParams)
        html = _render()
        assert dict(matplotlib.rcParams) == before
    assert html == _render()


def test_curves_tell_splits_and_checkpoint() -> None:
    page = Page(_render())
    assert (
        "Loss by epoch: train goes from 1.6 to 0.5333, validation goes from 1.5 to 1.5."
        in page.alts
    )
    assert "checkpoint, epoch 2" in page.text


def test_a_run_that_was_resumed_says_so_and_marks_where() -> None:
    lines = [_epoch(epoch) | ({"resumed": True} if epoch == 2 else {}) for epoch in (1, 2, 3)]
    plain, resumed = _render(), _render(history=lines)
    assert "went on in the epochs marked ▲" in Page(resumed).text
    assert "▲" not in plain
    assert resumed.count("<use") == plain.count("<use") + 2


def test_run_without_validation_split_has_train_curves() -> None:
    history = [{k: v for k, v in _epoch(epoch).items() if k != "validation"} for epoch in (1, 2)]
    page = Page(_render(history=history))
    assert "Loss by epoch: train goes from 1.6 to 0.8." in page.alts
    assert not any("validation" in alt for alt in page.alts)


def test_without_history_there_are_no_curves() -> None:
    page = Page(_render(history=[]))
    assert "How it learned" not in page.text
    assert "Where the time went" not in page.text
    assert "45.1% exactly right" in page.text


@pytest.mark.parametrize("loss", [None, float("nan"), float("inf")])
def test_diverged_epoch_leaves_a_gap(loss: float | None) -> None:
    lost = _epoch(2)
    lost["train"] = lost["train"] | {"loss": loss}
    page = Page(_render(history=[_epoch(1), lost, _epoch(4)]))
    assert any("train goes from 1.6 to 0.4" in alt for alt in page.alts)


def test_count_without_photos_has_dashes() -> None:
    assert "5 0 – – –" in Page(_render(evaluation=_evaluation(empty=5))).text


def test_confusion_matrix_shows_the_counts() -> None:
    assert "True count Answered 0 1 2 3 4 5 0 7 3 0 0 0 0 1 0 7 3 0 0 0" in Page(_render()).text


def test_confusion_matrix_of_many_classes_is_a_picture_with_a_description() -> None:
    page = Page(_render(evaluation=_evaluation(112, empty=90)))
    assert any(alt.startswith("Confusion matrix of 112 classes") for alt in page.alts)
    assert "111 10 70.0% 70.0% 0.55" in page.text


def test_published_results_only_beside_the_same_six_counts() -> None:
    caveat = "trained on 324,735 photos with a random split, so not comparable one to one"
    six = Page(_render()).text
    assert caveat in six
    assert "ResNet-34 from scratch 55.7% – 0.930" in six
    assert "ResNet-34 55.9% 90.5% 0.901" in six
    assert caveat not in Page(_render(evaluation=_evaluation(7))).text


def test_findings_of_rules_are_shown_issues_first() -> None:
    findings = [
        {"rule": "dead-relu", "status": "NoIssuesFound", "evidence": "none dead", "remedy": ""},
        {"rule": "overfit", "status": "IssuesFound", "evidence": "42% <more>", "remedy": "rest"},
    ]
    text = Page(_render(findings=findings)).text
    assert "1 of 2 rules found an issue" in text
    assert text.index("overfit ✗ issue 42% <more>") < text.index("dead-relu ✓ none")
    assert "What helps: rest" in text
    assert "What the rules say" not in Page(_render()).text
    assert "None of 1 rules found an issue" in Page(_render(findings=findings[:1])).text


def test_time_tells_how_fast_the_model_would_be_with_no_wait() -> None:
    text = Page(_render(history=[_epoch(1) | {"model_images_per_s": 120.5}])).text
    assert "The model alone, images/s 120.5" in text


def test_rates_of_thousands_are_told_without_decimals() -> None:
    history = [_epoch(1) | {"images_per_s": 10215.84}]
    assert "Images/s, median 10,216" in Page(_render(history=history)).text


def test_the_original_is_among_the_published_results() -> None:
    assert "photos of 1 to 5 items 26.0%" in Page(_render()).text
