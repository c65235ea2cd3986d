"""What of an earlier start lies in a run's folder or its mirror: to be gone on with, or kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from bintally.counting.checkpoint import Checkpoint, parse_checkpoint, read_checkpoint
from bintally.errors import CommandError, UsageError
from bintally.storage.folder import delete_temporary_files
from bintally.storage.opening import open_place
from bintally.storage.place import Place
from bintally.terminal.progress import say
from training.config import FitConfig
from training.launch.distributed import Process
from training.launch.launcher import launchers, restarters
from training.report.results import BEST, EVALUATION, LAST, METRICS, REPORT, TRACE, TRACKING
from training.survival.run_folder import check_run, read_launchers, read_run, write_launchers

__all__ = ["describe_last", "find_earlier", "read_together"]


def find_earlier(config: FitConfig, dataset: str, process: Process) -> Checkpoint | None:
    """The checkpoint to go on from, or None where the run begins; the same on all processes.

    `dataset` is the sha256 of what is trained on now. Raises `UsageError` for files that no run
    wrote, for a run that is there with neither `resume` nor `restart`, and for one that was begun
    with other settings or data.
    """
    run = config.run
    names = set().union(*process.gather(launchers(os.environ)))
    mine = restarters(os.environ, restart=config.restart)
    again = set().union(*process.gather(mine))
    seen = process.gather((run / LAST).exists())

    def look() -> bytes:
        # A job that is started again, or that a node joins, gets its command line as it was:
        # nobody can say --resume then, and --restart was for its beginning.
        same_job = bool(again & read_launchers(run))
        found = _find(config, dataset, resume=config.resume or same_job)
        if not found and any(seen[1:]) and not seen[0]:
            raise UsageError(
                f"--run {run}: another machine has a checkpoint there, and this one has none; "
                "name a folder that all share"
            )
        write_launchers(run, names)
        return found

    data = process.let_first(look)
    return parse_checkpoint(data, run / LAST) if data else None


def read_together(config: FitConfig, name: str, process: Process) -> tuple[Checkpoint, str]:
    """A checkpoint of the run and its file's sha256: the first process reads it for all."""
    file = config.run / name
    data = process.let_first(file.read_bytes)
    return parse_checkpoint(data, file), hashlib.sha256(data).hexdigest()


def describe_last(run: Path) -> str:
    """Where the last good checkpoint of a run is, for an error's line."""
    last = run / LAST
    if not last.exists():
        return "there is no checkpoint yet"
    good, _ = read_checkpoint(last)
    return f"the last good checkpoint is {last} (epoch {good.epoch}, step {good.step})"


def _find(config: FitConfig, dataset: str, *, resume: bool) -> bytes:
    """The checkpoint to go on from, as bytes; none where the run begins."""
    folder = open_place(config.run)
    held = {"--run": (folder, read_run(folder))}
    if config.mirror is not None:
        mirror = open_place(config.mirror)
        try:
            held["--mirror"] = mirror, read_run(mirror)
        except CommandError as error:
            # Only where the run can be nowhere else is there nothing to be done without it.
            if resume and LAST not in held["--run"][1]:
                raise
            say(f"warning: {error}; what the mirror holds is not known")
    for place, files in held.values():
        check_run(place, files)
    delete_temporary_files(config.run)
    if resume:
        return _go_on(config, dataset, held)
    for flag, (place, files) in held.items():
        if files and not config.restart:
            raise UsageError(f"{flag} {place}: {_describe(files)}")
    if config.profile and not held["--run"][1] and (config.run / TRACE).exists():
        raise UsageError(f"{config.run / TRACE}: --profile would write over it; move it away")
    for place, files in held.values():
        for name in files:
            place.delete(name)
    return b""


def _go_on(
    config: FitConfig, dataset: str, held: Mapping[str, tuple[Place, Mapping[str, bytes]]]
) -> bytes:
    """The furthest checkpoint there is, which the run's folder has then."""
    furthest, found, source, alone = (0, 0), b"", "--run", ""
    for flag, (place, files) in held.items():
        data = files.get(LAST) or files.get(BEST)
        if data is None:
            if EVALUATION in files or REPORT in files:
                raise UsageError(f"{flag} {place}: {_describe(files)}")
            continue
        checkpoint = parse_checkpoint(data, Path(str(place)))
        _check_same(config, checkpoint, dataset, f"{flag} {place}")
        if not checkpoint.resumable:
            # A run that was killed between its first two checkpoints has a best and no last one,
            # and makes the same again. Behind a later best one is work that nobody said to lose.
            if checkpoint.epoch > 1:
                alone = f"{flag} {place}: holds the {BEST} of epoch {checkpoint.epoch}"
            continue
        position = checkpoint.epoch, checkpoint.step
        if not found or position > furthest:
            furthest, found, source = position, data, flag
    if alone and not found:
        raise UsageError(
            f"{alone}, and no {LAST} to go on from; bring that back, or name another place; "
            "--restart deletes it"
        )
    if source != "--run":
        mirror, files = held[source]
        folder = open_place(config.run)
        for name in (TRACKING, METRICS, BEST, LAST):  # The one that counts comes last.
            if name in files:
                folder.put(name, files[name])
        say(f"{config.run}: fetched the run from {mirror}")
    return found


def _check_same(config: FitConfig, earlier: Checkpoint, dataset: str, where: str) -> None:
    if earlier.dataset != dataset:
        raise UsageError(f"{where}: was trained on another dataset than {config.shards}")
    if "lanes" not in earlier.config:
        raise UsageError(
            f"{where}: was begun by an older version, with an order of photos that this one does "
            "not have; finish it with that version, or name another --run"
        )
    if differences := config.differences(earlier.config):
        raise UsageError(
            f"{where}: was begun with other settings: {'; '.join(differences)}; "
            "resume with the same, or name another --run"
        )


def _describe(files: Mapping[str, bytes]) -> str:
    """What lies in a place, and what can be done about it."""
    data = files.get(LAST) or files.get(BEST)
    if data is None:
        return f"holds {', '.join(files)} of a run; name another place, or --restart deletes them"
    checkpoint = parse_checkpoint(data, Path())
    if checkpoint.finished:
        return "holds a finished run; name another place, or --restart deletes it"
    return (
        f"holds an unfinished run (epoch {checkpoint.epoch}, step {checkpoint.step}); "
        "--resume goes on with it, --restart deletes it"
    )
