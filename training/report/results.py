"""What a run shows for itself: `evaluation.json` and `report.html`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bintally.counting.decision import Decision
from bintally.dataset.labels import Classes
from bintally.dataset.samples import Samples
from bintally.storage.folder import write_atomically
from training.report.history import read_history
from training.report.page import Example, render_run_report

if TYPE_CHECKING:
    from bintally.counting.checkpoint import Checkpoint
    from training.evaluate import Evaluation

__all__ = [
    "BEST",
    "EVALUATION",
    "EVENTS",
    "LAST",
    "METRICS",
    "REPORT",
    "RESULTS",
    "RULES_FILE",
    "TRACE",
    "TRACKING",
    "write_results",
]

LAST = "last.pt"
BEST = "best.pt"
METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"
REPORT = "report.html"
RESULTS = (EVALUATION, REPORT)
"""What is there when a run is done."""
RULES_FILE = "rules.json"
EVENTS = "tensorboard"
TRACE = "trace.json"
TRACKING = "tracking.json"
"""Under which id trackers know the run."""

MOST_WRONG_EXAMPLES = 9


def write_results(
    folder: Path,
    run: Path,
    evaluation: Evaluation,
    samples: Samples,
    checkpoint: Checkpoint,
    sha256: str,
    baseline_count: int | str,
) -> dict[str, Any]:
    """Decides as the checkpoint does, and writes `evaluation.json` and `report.html` into a folder;
    returns the former's value.

    Curves and findings come from the `metrics.jsonl` and `rules.json` in the folder of the run that
    the checkpoint is of, if they lie there.
    """
    evaluation = replace(evaluation, decision=Decision.from_dict(checkpoint.decision))
    summary = {
        "split": samples.split,
        **evaluation.summarize(checkpoint.classes, baseline_count),
        "checkpoint": {"epoch": checkpoint.epoch, "sha256": sha256},
        "dataset": checkpoint.dataset,
    }
    page = render_run_report(
        title=f"Bintally: {checkpoint.config['backbone']} on the {samples.split} split",
        config=checkpoint.config,
        history=read_history(run / METRICS),
        evaluation=summary,
        findings=_findings(run / RULES_FILE),
        examples=_examples(evaluation, samples, checkpoint.classes),
    )
    write_atomically(folder / REPORT, page.encode())
    write_atomically(folder / EVALUATION, (json.dumps(summary, indent=1) + "\n").encode())
    return summary


def _findings(file: Path) -> list[dict[str, Any]]:
    """What the rules found, unless a crash has cut it."""
    try:
        findings: list[dict[str, Any]] = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return []
    return findings


def _examples(evaluation: Evaluation, samples: Samples, classes: Classes) -> list[Example]:
    """A right answer of each class, and the wrong ones that the model was surest of."""
    predicted = evaluation.predicted(classes)
    right: list[int] = []
    wrong: list[int] = []
    for index, (label, answer) in enumerate(zip(evaluation.labels, predicted, strict=True)):
        (right if label == answer else wrong).append(index)
    first_right = {int(evaluation.labels[i]): i for i in reversed(right)}
    wrong.sort(key=lambda i: (-evaluation.probabilities[i, predicted[i]], i))
    chosen = [i for _, i in sorted(first_right.items())][:MOST_WRONG_EXAMPLES]
    return [
        Example(
            samples.ids[evaluation.indices[i]],
            samples.photo(int(evaluation.indices[i])).tobytes(),
            classes[evaluation.labels[i]],
            classes[predicted[i]],
            float(evaluation.probabilities[i, predicted[i]]),
        )
        for i in [*chosen, *wrong[:MOST_WRONG_EXAMPLES]]
    ]
