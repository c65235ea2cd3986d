"""The environment of a SageMaker training job, as flags of `fit`: it runs there without change.

Contract: SageMaker Training Toolkit, "Environment variables". Channels are folders in
`SM_CHANNEL_<NAME>`, hyperparameters a JSON object in `SM_HPS`, and what lies in
/opt/ml/checkpoints is kept on S3 and brought back when a job on spot machines begins again. In a
container without that toolkit, `training.launch.sagemaker_container` makes the same of its files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bintally.errors import UsageError

__all__ = ["deliver", "with_job"]

CHECKPOINTS = "/opt/ml/checkpoints"
CHANNELS = ("SM_CHANNEL_SHARDS", "SM_CHANNEL_TRAINING", "SM_CHANNEL_TRAIN")
"""Where the dataset may be, the first that there is."""


def with_job(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """A command line with the flags that a job's environment stands for; its own ones win.

    Outside of a job, without `SM_MODEL_DIR`, the command line as it is. Raises `UsageError` for
    hyperparameters that are no JSON object.
    """
    words = [*arguments]
    if not words or words[0] != "fit" or "SM_MODEL_DIR" not in environment:
        return words
    flags = ["--run", CHECKPOINTS, "--resume"]
    channel = next((environment[name] for name in CHANNELS if name in environment), None)
    if channel is not None:
        flags += ["--shards", channel]
    try:
        settings = json.loads(environment.get("SM_HPS") or "{}")
    except ValueError as error:
        raise UsageError(f"SM_HPS: not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise UsageError("SM_HPS: must be a JSON object of hyperparameters")
    for name, value in settings.items():
        flags += _flag(name.replace("-", "_"), value)
    return ["fit", *flags, *words[1:]]


def _flag(name: str, value: Any) -> list[str]:
    """The words that a hyperparameter stands for; null is one that is not set."""
    flag = "--" + name.replace("_", "-")
    # The console and other tools make texts of all values.
    value = {"true": True, "false": False, "null": None}.get(str(value).lower(), value)
    if isinstance(value, str) and value.startswith("["):
        with suppress(ValueError):
            value = json.loads(value)
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag] if value else []  # All switches are off where nothing is said.
    if isinstance(value, list):
        return [flag, *map(str, value)] if value else []
    if isinstance(value, dict):
        raise UsageError(f"SM_HPS: {name}: must be a number, a text, true, false, null or a list")
    return [flag, str(value)]


def deliver(run: Path, environment: Mapping[str, str]) -> None:
    """Copies a finished run to where SageMaker collects results, inside of a job."""
    model = environment.get("SM_MODEL_DIR")
    if model is None:
        return
    output = environment.get("SM_OUTPUT_DATA_DIR", model)
    for folder, names in (
        (model, ("best.pt",)),
        (output, ("metrics.jsonl", "evaluation.json", "report.html", "rules.json")),
    ):
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            if (run / name).exists():
                shutil.copy(run / name, Path(folder) / name)
