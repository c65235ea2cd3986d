"""The history of a run: `metrics.jsonl`, a line of JSON for each epoch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bintally.terminal.progress import say

__all__ = ["epoch_line", "history_bytes", "read_history"]


def history_bytes(history: Sequence[dict[str, Any]]) -> bytes:
    """The file of all epochs so far."""
    return "".join(json.dumps(line) + "\n" for line in history).encode()


def epoch_line(line: dict[str, Any], epochs: int) -> str:
    """How an epoch's line of `metrics.jsonl` is told on a terminal."""
    train, validation = line["train"], line.get("validation")
    text = (
        f"epoch {line['epoch']:>{len(str(epochs))}}/{epochs}  "
        f"train loss {train['loss']:.3f} accuracy {train['accuracy']:.1%}"
    )
    if validation is not None:
        text += f"  validation loss {validation['loss']:.3f} accuracy {validation['accuracy']:.1%} "
        if validation["rmse"] is not None:
            text += f"RMSE {validation['rmse']:.3f} "
        if (rule := validation["decision"]["rule"]) != "argmax":
            text += f"by {rule} "
    return (
        f"{text.rstrip()}  {line['images_per_s']:,.0f} images/s, "
        f"{line['data_wait_share']:.0%} waiting for data"
    )


def read_history(file: Path, epochs: int | None = None) -> list[dict[str, Any]]:
    """The lines of the epochs that a checkpoint has done, or all of them.

    A line that a crash or a full disk has cut, or made unreadable, is left out and told.
    """
    if not file.exists():
        return []
    history = []
    for number, text in enumerate(file.read_text(errors="replace").splitlines(), 1):
        try:
            line = json.loads(text)
            wanted = epochs is None or line["epoch"] <= epochs
        except (ValueError, TypeError, KeyError):
            say(f"{file}: line {number} is damaged, and left out")
            continue
        if wanted:
            history.append(line)
    return history
