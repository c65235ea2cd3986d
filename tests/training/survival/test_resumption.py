"""A run that is there is gone on with or kept, and nobody else's file is ever written over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bintally.counting.checkpoint import checkpoint_bytes, parse_checkpoint, read_checkpoint
from bintally.dataset.manifest import read_dataset
from bintally.errors import UsageError, WorkError
from bintally.storage.opening import open_place, take_lease
from tests.conftest import contents, copy
from tests.training.runs import settings
from tests.training.survival.test_survival import ALONE, be_terminated
from training.config import FitConfig
from training.fit import fit
from training.report.history import history_bytes, read_history
from training.survival.resumption import find_earlier

RUN_FILES = (
    *("last.pt", "best.pt", "metrics.jsonl", "evaluation.json", "report.html", "rules.json"),
    *("tracking.json", "trace.json"),
)


@pytest.fixture(scope="module")
def interrupted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> FitConfig:
    """A run that was asked to end after its first epoch."""
    config = settings(shards, tmp_path_factory.mktemp("interrupted") / "run", trainable="head")
    fit(config, be_terminated)
    return config


Copied = Callable[..., FitConfig]


@pytest.fixture
def unfinished(interrupted: FitConfig, tmp_path: Path) -> Copied:
    """Copies of that run, to be called on with other flags: `unfinished("name", resume=True)`."""

    def copied(name: str = "run", **flags: object) -> FitConfig:
        shutil.copytree(interrupted.run, tmp_path / name)
        return replace(interrupted, run=tmp_path / name, **flags)  # type: ignore[arg-type]

    return copied


def look(config: FitConfig) -> tuple[int, int] | None:
    """From where `fit` would go on, None where it would begin."""
    dataset = read_dataset(open_place(config.shards))
    earlier = find_earlier(config, dataset.sha256, ALONE)
    return None if earlier is None else (earlier.epoch, earlier.step)


def test_an_unfinished_run_is_kept_unless_told(unfinished: Copied) -> None:
    config = unfinished()
    before = contents(config.run)
    with pytest.raises(
        UsageError, match=r"unfinished run \(epoch 1, step 1\).*--resume.*--restart"
    ):
        fit(config)
    assert contents(config.run) == before
    assert look(replace(config, resume=True)) == (1, 1)
    assert contents(config.run) == before


def test_restart_deletes_the_run_and_nothing_else(unfinished: Copied) -> None:
    config = unfinished(restart=True)
    (config.run / "notes.txt").write_text("mine")
    (config.run / "tensorboard").mkdir()
    (config.run / "tensorboard/other").write_text("mine")
    assert look(config) is None
    left = contents(config.run)
    assert not left.keys() & {"last.pt", "best.pt", "metrics.jsonl", "rules.json"}
    assert left["notes.txt"] == left["tensorboard/other"] == b"mine"


def test_resume_and_restart_exclude_each_other(interrupted: FitConfig) -> None:
    with pytest.raises(UsageError, match="one of the two"):
        fit(replace(interrupted, resume=True, restart=True))


def agent(folder: str, attempt: int) -> dict[str, str]:
    """What torchrun's agent gives its processes; a node that joins does not count as an attempt."""
    file = f"/tmp/torchelastic_{folder}/none_x/attempt_{attempt}/0/error.json"
    return {"TORCHELASTIC_RESTART_COUNT": str(attempt), "TORCHELASTIC_ERROR_FILE": file}


@pytest.mark.parametrize("flags", [{}, {"restart": True}])
@pytest.mark.parametrize(
    ("first", "again", "goes_on"),
    [
        (agent("a", 0), agent("a", 0), True),
        (agent("a", 0), agent("a", 1), True),
        (agent("a", 0), agent("b", 1), False),
        (agent("a", 0) | {"TORCHELASTIC_RUN_ID": "none"}, {"TORCHELASTIC_RUN_ID": "none"}, False),
        ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, True),
        ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7"}, False),
        ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "1"}, False),
    ],
)
def test_a_job_that_is_started_again_goes_on_and_no_other_one(
    flags: dict[str, bool],
    first: dict[str, str],
    again: dict[str, str],
    goes_on: bool,
    interrupted: FitConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(interrupted, run=tmp_path / "run", **flags)  # type: ignore[arg-type]
    with monkeypatch.context() as environment:
        for name, value in first.items():
            environment.setenv(name, value)
        assert look(config) is None
    shutil.copy(interrupted.run / "last.pt", config.run)
    for name, value in again.items():
        monkeypatch.setenv(name, value)
    if goes_on:
        assert look(config) == (1, 1)
    elif config.restart:
        assert look(config) is None
    else:
        with pytest.raises(UsageError, match="--resume"):
            look(config)


def test_a_torchrun_job_all_of_whose_nodes_were_replaced_goes_on(
    interrupted: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(interrupted, run=tmp_path / "run")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-1")
    assert look(config) is None
    shutil.copy(interrupted.run / "last.pt", config.run)
    assert look(config) == (1, 1)
    assert look(replace(config, restart=True)) is None, "an id in a script is used again"


def test_a_run_killed_between_its_first_two_checkpoints_makes_them_again(
    unfinished: Copied,
) -> None:
    config = unfinished(resume=True)
    best = (config.run / "best.pt").read_bytes()
    (config.run / "last.pt").unlink()
    assert look(config) is None
    with pytest.raises(UsageError, match="--resume goes on"):
        look(replace(config, resume=False))
    with pytest.raises(UsageError, match=r"--lr .* became 0\.5"):
        look(replace(config, lr=0.5))
    fit(config, be_terminated)
    assert (config.run / "best.pt").read_bytes() == best


def test_a_run_that_has_lost_its_last_checkpoint_keeps_its_best_one(unfinished: Copied) -> None:
    config = unfinished(resume=True)
    mirror = config.run.with_name("mirror")
    shutil.copytree(config.run, mirror)
    best, _ = read_checkpoint(config.run / "best.pt")
    (config.run / "best.pt").write_bytes(checkpoint_bytes(replace(best, epoch=2)))
    (config.run / "last.pt").unlink()
    before = contents(config.run)
    with pytest.raises(UsageError, match=r"best\.pt of epoch 2, and no last\.pt to go on from"):
        look(config)
    assert contents(config.run) == before
    assert look(replace(config, mirror=str(mirror))) == (1, 1), "the mirror has it"


def test_a_best_checkpoint_of_an_older_version_is_gone_on_with(unfinished: Copied) -> None:
    """It held all that the last one did."""
    config = unfinished(resume=True)
    (config.run / "last.pt").replace(config.run / "best.pt")
    assert look(config) == (1, 1)


OURS = st.sampled_from(RUN_FILES)
FOREIGN = st.sampled_from(["notes.txt", "model.pt", "tensorboard/x", "last.pt.old", "data/last.pt"])


@given(
    tree=st.dictionaries(OURS | FOREIGN, st.binary(max_size=40) | st.just(b"{}") | st.just(b"[1]")),
    flags=st.sampled_from([{}, {"resume": True}, {"restart": True}, {"profile": True}]),
    mirrored=st.booleans(),
)
@example(tree={"last.pt": b"M"}, flags={}, mirrored=False).via("torch's unpickler: struct.error")
@example(tree={"last.pt": b"J"}, flags={}, mirrored=True).via("torch's unpickler: IndexError")
@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_files_that_no_run_wrote_are_never_touched(
    tree: dict[str, bytes],
    flags: dict[str, bool],
    mirrored: bool,
    interrupted: FitConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    place = tmp_path_factory.mktemp("place")
    for path, data in tree.items():
        (place / path).parent.mkdir(exist_ok=True)
        (place / path).write_bytes(data)
    run = place.with_name(place.name + "-run") if mirrored else place
    config = replace(
        interrupted,
        run=run,
        mirror=str(place) if mirrored else None,
        **flags,  # type: ignore[arg-type]
    )
    blocking = tree.keys() & {*RUN_FILES[:-1], *(["trace.json"] if config.profile else [])}
    if mirrored:
        blocking -= {"trace.json"}
    if blocking:
        with pytest.raises(UsageError, match=r"no run of ours wrote it|would write over it"):
            look(config)
    else:
        assert look(config) is None
    assert contents(place) == tree


def test_what_is_in_the_mirror_is_kept_and_gone_on_with(
    unfinished: Copied, tmp_path: Path, s3: str
) -> None:
    config = unfinished()
    copy(open_place(config.run), open_place(f"{s3}/run"))
    elsewhere = replace(config, run=tmp_path / "elsewhere", mirror=f"{s3}/run")
    with pytest.raises(UsageError, match=r"--mirror s3://.* unfinished run"):
        look(elsewhere)
    # Here lies an earlier checkpoint than there.
    last, _ = read_checkpoint(config.run / "last.pt")
    elsewhere.run.mkdir(exist_ok=True)
    (elsewhere.run / "last.pt").write_bytes(checkpoint_bytes(replace(last, epoch=0)))
    assert look(replace(elsewhere, resume=True)) == (1, 1)
    assert (elsewhere.run / "best.pt").read_bytes() == (config.run / "best.pt").read_bytes()
    with pytest.raises(UsageError, match=r"--mirror s3://.*: was begun with other settings"):
        look(replace(elsewhere, run=tmp_path / "new", resume=True, lr=0.5))
    assert look(replace(elsewhere, restart=True)) is None
    assert "last.pt" not in {entry.path for entry in open_place(f"{s3}/run").entries()}


def test_a_mirror_that_says_no_ends_no_training_and_is_told_at_the_end(
    interrupted: FitConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    config = replace(interrupted, run=tmp_path / "run", mirror=str(tmp_path / "file/mirror"))
    with pytest.raises(WorkError, match=r"--mirror lacks .*last\.pt.*Not a directory"):
        fit(config)
    assert parse_checkpoint((config.run / "last.pt").read_bytes(), config.run).finished
    assert (config.run / "report.html").exists()
    assert "training goes on" in capfd.readouterr().err


def test_of_two_runs_into_one_folder_the_second_is_refused(unfinished: Copied) -> None:
    config = unfinished(resume=True)
    before = (config.run / "last.pt").read_bytes()
    with take_lease(open_place(config.run)), pytest.raises(WorkError, match="is writing here"):
        fit(config)
    assert (config.run / "last.pt").read_bytes() == before


@given(kept=st.integers(0, 200), garbage=st.binary(max_size=9))
@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_history_that_a_crash_has_cut_is_read_as_far_as_it_goes(
    kept: int, garbage: bytes, tmp_path: Path
) -> None:
    lines = [{"epoch": epoch, "loss": 0.5} for epoch in (1, 2, 3, 4)]
    data = history_bytes(lines)[:kept]
    whole = data.count(b"\n")
    (tmp_path / "metrics.jsonl").write_bytes(data[: data.rfind(b"\n") + 1] + garbage)
    assert read_history(tmp_path / "metrics.jsonl", 3)[:whole] == lines[: min(whole, 3)]
    (tmp_path / "metrics.jsonl").write_bytes(data)
    assert read_history(tmp_path / "metrics.jsonl")[:whole] == lines[:whole]


def test_a_run_whose_records_were_cut_goes_on_and_reports(unfinished: Copied) -> None:
    config = unfinished(resume=True)
    for name in ("metrics.jsonl", "rules.json"):
        data = (config.run / name).read_bytes()
        (config.run / name).write_bytes(data[:-20])
    assert fit(config).finished
    lines = [json.loads(x) for x in (config.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [2]
    assert (config.run / "report.html").exists()


def test_a_run_keeps_the_order_it_was_begun_with(unfinished: Copied) -> None:
    config = unfinished(resume=True)
    begun = read_checkpoint(config.run / "last.pt")[0].config
    assert look(config) is not None
    assert look(replace(config, lanes=begun["lanes"], window=begun["window"])) is not None
    with pytest.raises(UsageError, match=f"--lanes {begun['lanes']} became 8"):
        look(replace(config, lanes=8))


def test_a_run_of_an_older_order_is_refused_in_one_line(unfinished: Copied) -> None:
    config = unfinished(resume=True)
    checkpoint, _ = read_checkpoint(config.run / "last.pt")
    for name in ("lanes", "window"):
        del checkpoint.config[name]
    (config.run / "last.pt").write_bytes(checkpoint_bytes(checkpoint))
    with pytest.raises(UsageError, match=r"was begun by an older version, .* name another --run$"):
        look(config)
