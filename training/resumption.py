"""What of an earlier start lies in a run's folder, or in its mirror: to be resumed, or cleared."""

from __future__ import annotations

import hashlib
import os
import shutil

from bintally.command import UsageError
from bintally.places import delete_temporary_files, open_place
from bintally.progress import say
from training.checkpoint import Checkpoint, parse_checkpoint
from training.config import FitConfig
from training.distributed import Process
from training.results import BEST, EVALUATION, EVENTS, LAST, METRICS, REPORT, RULES, TRACE

__all__ = ["find_earlier", "read_together"]


def find_earlier(config: FitConfig, dataset: str, process: Process) -> Checkpoint | None:
    """The checkpoint to go on from, or None where the run begins; the same on all processes.

    `dataset` is the sha256 of what is trained on now. What an abandoned run left is cleared away.
    Raises `UsageError` for a run that is finished, or was begun with other settings or data.
    """
    run = config.run
    # torchrun starts all processes again after one has failed: nobody can say --resume then.
    resume = config.resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if process.is_first:
        delete_temporary_files(run)
        if resume and config.mirror is not None and not (run / LAST).exists():
            _fetch(config)
    there = process.share((run / LAST).exists() if process.is_first else None)
    earlier = read_together(config, LAST, process)[0] if there else None
    if earlier is not None and not resume and earlier.finished:
        raise UsageError(
            f"--run {run}: holds a finished run; name another folder, or remove this one"
        )
    if earlier is None or not resume:
        if process.is_first:
            if earlier is not None:
                say(f"{run}: starting over an unfinished run (--resume would continue it)")
            for name in (LAST, BEST, METRICS, EVALUATION, REPORT, RULES, TRACE):
                (run / name).unlink(missing_ok=True)
            shutil.rmtree(run / EVENTS, ignore_errors=True)
        process.wait()
        return None
    if earlier.dataset != dataset:
        raise UsageError(f"--resume: {run} was trained on another dataset than {config.shards}")
    if differences := config.differences(earlier.config):
        raise UsageError(
            f"--resume: {run} was begun with other settings: {'; '.join(differences)}; "
            "resume with the same, or name another --run"
        )
    return earlier


def read_together(config: FitConfig, name: str, process: Process) -> tuple[Checkpoint, str]:
    """A checkpoint of the run and its file's sha256: the first process reads it for all."""
    file = config.run / name
    data = process.share(file.read_bytes() if process.is_first else None)
    return parse_checkpoint(data, file), hashlib.sha256(data).hexdigest()


def _fetch(config: FitConfig) -> None:
    """Brings an earlier run from the mirror into the run's folder; last.pt comes last."""
    mirror, folder = open_place(str(config.mirror)), open_place(config.run)
    try:
        last = mirror.get(LAST)
    except FileNotFoundError:
        return
    for name in (METRICS, BEST):
        try:
            folder.put(name, mirror.get(name))
        except FileNotFoundError:
            continue  # An interrupted first epoch has neither.
    folder.put(LAST, last)
    say(f"{config.run}: fetched the run from {mirror}")
