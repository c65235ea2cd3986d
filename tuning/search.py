"""A search: features once, many trials, one winner, and all of it told.

The output folder holds `search.json` (what is searched, for `--resume`), `trials/` (a file for each
that is over, and the runs of those that train everything), `winner/` (a run like any other: the
winner's settings with the search's own seed, its best epoch in `best.pt`), `results.csv`,
`best.json`, `report.html`, and `tensorboard/`.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bintally.dataset.manifest import Dataset, read_dataset
from bintally.errors import UsageError, WorkError
from bintally.storage.folder import write_atomically
from bintally.storage.opening import open_place
from bintally.terminal.progress import Progress, say
from training.launch.ray_train import settled
from training.metrics import LOWER_IS_BETTER
from tuning.choosing.study import Outcome, Study, importance
from tuning.choosing.winner import FINALISTS, WINDOW, Finalist, choose, objective, sampling_error
from tuning.cluster import Resources, connected
from tuning.config import SearchConfig
from tuning.feature_sets import FeatureSets, compute_feature_sets
from tuning.results import (
    BEST_TRIAL,
    CSV,
    SEARCH_REPORT,
    TRIALS,
    WINNER,
    Trial,
    read_repeats,
    read_trials,
    trial_name,
)
from tuning.search_folder import RAY, begin, note, noted
from tuning.space import ORIGINAL, Space
from tuning.tasks import Winner, result, train_head, train_winner

if TYPE_CHECKING:
    from tuning.choosing.agenda import Agenda
    from tuning.runner import JobsRun

__all__ = ["search"]

CAPSTONE = "capstone"
RETRIES = 3
"""How often a trial is begun again that failed, or whose machine was lost."""


def search(config: SearchConfig) -> dict[str, Any]:
    """Searches as `config` says and trains the winner; returns what `best.json` holds.

    Raises `UsageError` for settings that do not fit each other, the data or the folder, and
    `WorkError` where not one trial came to its end.
    """
    config.check()
    dataset = read_dataset(open_place(config.shards))
    if not dataset.splits["validation"].samples:
        raise UsageError(f"--shards {config.shards}: has no validation split to search on")
    space = config.read_space().limited(dataset.splits["train"].samples)
    config.check_space(space, dataset.classes)
    folder = config.output.absolute()
    begin(config, space, dataset, folder)
    with connected(config.ray):
        return _Search(config, space, dataset, folder).execute()


class _Search:
    def __init__(self, config: SearchConfig, space: Space, dataset: Dataset, folder: Path) -> None:
        self.config, self.space, self.dataset, self.folder = config, space, dataset, folder
        base = settled(replace(config.base(space), run=folder))
        self.heads = base.trainable == "head"
        self.resources = Resources.of(config, heads=self.heads)
        self.base = replace(base, device="cuda" if self.resources.gpus else "cpu")
        self.lower_is_better = config.metric in LOWER_IS_BETTER
        self.seconds: dict[str, float] = {}

    def execute(self) -> dict[str, Any]:
        with self._timed("features"):
            features = FeatureSets({}, {})
            if self.heads:
                features = compute_feature_sets(
                    self.base, self.space, self.config.repeats, self.resources
                )
        with self._timed("search"):
            agenda, ran = self._run(features)
        overhead_s = ran.overhead_s(self.seconds["search"])
        self.seconds["search"] -= ran.repeats_s
        self.seconds["repeats"] = ran.repeats_s
        found = choose(agenda.trials, agenda.repeats, self.config.metric)
        if not found:
            trials = agenda.trials
            raise WorkError(
                f"{self.folder}: no trial came to its end ({len(trials)} failed; the first: "
                f"{trials[0].reason if trials else 'none was begun'}); see {CSV} there"
            )
        best = next(trial for trial in agenda.trials if trial.number == found[0].number)
        with self._timed("winner"):
            winner = self._train_winner(best, features)
            beside = self._capstone(features) if self.config.preset == CAPSTONE else None
        return self._write_results(
            agenda, found, best, winner, beside, overhead_s=overhead_s, time_is_up=ran.time_is_up
        )

    def _run(self, features: FeatureSets) -> tuple[Agenda, JobsRun]:
        """Runs the trials and the repeats of the best of them."""
        from tuning.choosing.agenda import Agenda
        from tuning.journal import Journal
        from tuning.runner import run_jobs
        from tuning.trial import Task, hold_rung

        config, earlier = self.config, self._earlier()
        study = Study(
            self.space,
            config.algorithm,
            lower_is_better=self.lower_is_better,
            seed=config.seed,
            # As when the search was begun, or its next trials would be others.
            lag=noted(self.folder, "lag", config.lag),
            patience=config.patience,
            earlier=earlier,
        )
        if earlier:
            say(f"--warm-start: learned from {study.num_learned} of {len(earlier)} earlier trials")
        known = [*read_trials(self.folder), *read_repeats(self.folder)]
        if known:
            say(f"{self.folder}: {len(known)} trials are over already")
        if not config.concurrency and self.resources.room > self.resources.concurrency:
            say(
                f"{self.resources.concurrency} trials at a time, and there is room for "
                f"{self.resources.room}: --concurrency {self.resources.room}"
            )
        task = Task(
            self.base,
            features.references,
            hold_rung() if self.heads else None,
            os.environ.get("BINTALLY_CACHE"),
            config.workers_per_trial,
            self.resources.worker,
        )
        with Progress("trials", config.trials + FINALISTS * config.repeats, "trials") as progress:
            journal = Journal(self.folder, config.metric, known, progress)

            def write(trial: Trial) -> None:
                journal.write(trial)
                if task.rung is not None:
                    task.rung.drop.remote(trial.number)

            agenda = Agenda(
                study,
                config.trials,
                metric=config.metric,
                epochs=self.base.epochs,
                halving=config.scheduler == "halving",
                repeats=config.repeats,
                known=known,
                on_over=write,
            )
            try:
                ran = run_jobs(
                    agenda,
                    task,
                    self.resources,
                    self.folder / RAY,
                    heads=self.heads,
                    seconds=self._time_left(),
                )
            except WorkError as error:
                raise WorkError(
                    f"{self.folder}: {error}; when that is mended, call again with --resume"
                ) from error
            finally:
                journal.write_table()
        return agenda, ran

    def _earlier(self) -> list[Outcome]:
        """What earlier searches found out."""
        outcomes: list[Outcome] = []
        for folder in self.config.warm_start:
            trials = read_trials(folder)
            if not trials:
                raise UsageError(f"--warm-start {folder}: no trials of an earlier search are there")
            for trial in trials:
                value = objective(trial.history, self.config.metric)
                if value is not None:
                    outcomes.append((trial.parameters, value))
        return outcomes

    def _time_left(self) -> float | None:
        if not self.config.minutes:
            return None
        return max(1.0, 60 * self.config.minutes - self.seconds["features"])

    def _train_winner(self, best: Trial, features: FeatureSets) -> Winner:
        """Trains the winner where a trial would be, on the node that has its features."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from training.heads import feature_settings
        from tuning.trial import trial_config

        # It is a run of its own, and has a mirror no longer: there may be that of another winner.
        config = replace(trial_config(self.base, best.parameters, WINNER), mirror=None)
        if noted(self.folder, "winner", best.number) != best.number:
            # Of a search that went on, and found a better one.
            shutil.rmtree(config.run, ignore_errors=True)
            note(self.folder, "winner", best.number)
        # What the trial has trained already need not be trained again.
        earlier = self.folder / TRIALS / trial_name(best.number, 0)
        if earlier.is_dir() and not config.run.exists():
            shutil.copytree(earlier, config.run, ignore=shutil.ignore_patterns(RAY))
        here = ray.get_runtime_context().get_node_id()
        home = features.nodes.get(feature_settings(config), here)
        train = ray.remote(
            num_cpus=self.resources.worker["CPU"],
            num_gpus=self.resources.worker.get("GPU", 0),
            max_retries=RETRIES,
            scheduling_strategy=NodeAffinitySchedulingStrategy(home, soft=True),
        )(train_winner)
        say(f"trial {best.number} has won: trained as it was found, all of its epochs")
        winner: Winner = result(train.remote(config, os.environ.get("BINTALLY_CACHE"), here))
        for name, data in winner.files.items():
            write_atomically(self.folder / WINNER / name, data)
        return winner

    def _capstone(self, features: FeatureSets) -> dict[str, Any] | None:
        """What the preset comes to as it is, without what --space fixes."""
        import ray

        from training.heads import feature_settings

        config = settled(replace(self.config.base(ORIGINAL), device=self.base.device))
        reference = features.references.get(feature_settings(config))
        if reference is None or config.batch_size > self.dataset.splits["train"].samples:
            return None
        worker = self.resources.worker
        train = ray.remote(num_cpus=worker["CPU"], num_gpus=worker.get("GPU", 0))(train_head)
        best: dict[str, Any] = result(train.remote(config, reference))
        return best

    def _write_results(
        self,
        agenda: Agenda,
        found: Sequence[Finalist],
        best: Trial,
        winner: Winner,
        beside: Mapping[str, Any] | None,
        *,
        overhead_s: float | None,
        time_is_up: bool,
    ) -> dict[str, Any]:
        """Writes `best.json` and the report."""
        from tuning.report.page import render_search_report

        config, trials = self.config, agenda.trials
        trained = [*trials, *agenda.repeats]
        samples = self.dataset.splits["validation"].samples
        summary = {
            "metric": config.metric,
            "mode": "min" if self.lower_is_better else "max",
            "algorithm": config.algorithm,
            "scheduler": config.scheduler,
            "seed": config.seed,
            "concurrency": self.resources.concurrency,
            "trials": config.trials,
            "ended": f"after {config.minutes:g} minutes" if time_is_up else agenda.ended,
            "backbone": self.base.backbone,
            "weights": Path(self.base.weights).name,
            "trainable": self.base.trainable,
            "dataset": self.dataset.sha256,
            "best": {
                "number": best.number,
                "parameters": dict(best.parameters),
                "value": best.value,
                "epoch": best.best["epoch"],
            },
            "chosen": {
                "window": WINDOW,
                "finalists": [finalist.to_dict() for finalist in found],
                "samples": samples,
                "sampling_error": sampling_error(config.metric, found[0].mean, samples),
            },
            "winner": {"validation": winner.best["validation"], "test": winner.test},
            "capstone": beside and {"validation": beside["validation"]},
            "epochs": sum(len(trial.history) for trial in trained),
            "seconds": self.seconds,
            "overhead_s": overhead_s,
            "gpu_hours": sum(trial.seconds * trial.gpus for trial in trained) / 3600,
        }
        shares = importance(
            self.space,
            [(t.parameters, t.value) for t in trials if t.value is not None],
            lower_is_better=self.lower_is_better,
        )
        page = render_search_report(summary, trials, self.space.to_dict(), importance=shares)
        write_atomically(self.folder / BEST_TRIAL, (json.dumps(summary, indent=1) + "\n").encode())
        write_atomically(self.folder / SEARCH_REPORT, page.encode())
        return summary

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began
