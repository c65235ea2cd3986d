"""A search: features once, many trials, one winner, and all of it told.

The output folder holds `search.json` (what is searched, for `--resume`), `trials/` (a file for each
that is over, and the runs of those that train everything), `winner/` (a run like any other),
`results.csv`, `best.json`, `report.html`, and `ray/` with TensorBoard's events.
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
from tuning.cluster import Resources, connected
from tuning.config import SearchConfig
from tuning.results import (
    BEST_TRIAL,
    CSV,
    SEARCH_REPORT,
    TRIALS,
    WINNER,
    Trial,
    read_trials,
    write_csv,
)
from tuning.schedulers import make_scheduler
from tuning.search_folder import RAY, begin, note, noted
from tuning.space import ORIGINAL, Choice, Space
from tuning.study import Outcome, Study, importance
from tuning.tasks import Winner, prepare_features, result, train_head, train_winner

if TYPE_CHECKING:
    from tuning.trial import Task

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
        self.resources = Resources.of(config, heads=base.trainable == "head")
        self.base = replace(base, device="cuda" if self.resources.gpus else "cpu")
        self.lower_is_better = config.metric in LOWER_IS_BETTER
        self.seconds: dict[str, float] = {}

    def execute(self) -> dict[str, Any]:
        heads = self.base.trainable == "head"
        with self._timed("features"):
            features, home = self._features() if heads else ({}, None)
        task = self._task(features)
        with self._timed("search"):
            trials, ended = self._tune(task)
        ranked = self._ranked(trials)
        if not ranked:
            raise WorkError(
                f"{self.folder}: no trial came to its end ({len(trials)} failed; the first: "
                f"{trials[0].reason if trials else 'none was begun'}); see {CSV} there"
            )
        best = ranked[0]
        with self._timed("winner"):
            winner = self._train_winner(best, home)
            beside = self._capstone(features) if heads and self.config.preset == CAPSTONE else None
        return self._write_results(trials, ended, best, winner, beside)

    def _features(self) -> tuple[dict[str, Any], str]:
        """References to the features of every backbone there is to try, and their node."""
        import ray

        dimension = self.space.dimensions.get("backbone")
        backbones = [self.base.backbone]
        if dimension is not None:
            assert isinstance(dimension, Choice), "names are no numbers"
            backbones = [*dimension.values]
        features, home = {}, ""
        for backbone in backbones:
            config = replace(self.base, backbone=backbone)
            compute = ray.remote(
                num_cpus=self.resources.cores_of_a_node, num_gpus=1 if self.resources.gpus else 0
            )(prepare_features)
            say(
                f"{backbone}: features of {self.dataset.splits['train'].samples:,} photos in both "
                f"views and {self.dataset.splits['validation'].samples:,} to validate on, once"
            )
            reference, node = compute.options(num_returns=2).remote(
                config, os.environ.get("BINTALLY_CACHE")
            )
            home = result(node)
            features[backbone] = reference
        return features, home

    def _task(self, features: Mapping[str, Any]) -> Task:
        from tuning.trial import Task

        return Task(
            self.base,
            features,
            {trial.number: trial for trial in read_trials(self.folder)},
            os.environ.get("BINTALLY_CACHE"),
            self.config.workers_per_trial,
            self.resources.worker,
            self.config.scheduler == "pbt",
        )

    def _tune(self, task: Task) -> tuple[list[Trial], str]:
        """Runs the trials; those that are over, and why there are fewer than asked for."""
        from ray import tune
        from ray.tune.logger import TBXLoggerCallback

        from tuning.journal import InOrder, Journal
        from tuning.trial import HeadTrial, train_everything

        config, concurrency = self.config, self.resources.concurrency
        population = config.scheduler == "pbt"
        earlier = self._earlier()
        study = Study(
            self.space,
            config.algorithm,
            lower_is_better=self.lower_is_better,
            seed=config.seed,
            lag=config.trials if population else self._lag(),
            patience=config.patience,
            earlier=earlier,
        )
        if earlier:
            say(f"--warm-start: learned from {study.num_learned} of {len(earlier)} earlier trials")
        if task.known:
            say(f"{self.folder}: {len(task.known)} trials are over already")
        searcher, space = None, None
        if population:
            points = [{"parameters": study.ask()} for _ in range(config.trials)]
            space = {
                "number": tune.grid_search([*range(config.trials)]),
                "parameters": tune.sample_from(
                    lambda spec: points[spec.config.number]["parameters"]
                ),
            }
        else:
            searcher = InOrder(study, config.trials)
        heads = self.base.trainable == "head"
        trainable: Any = tune.with_parameters(HeadTrial if heads else train_everything, task=task)
        trainable = tune.with_resources(trainable, self.resources.of_a_trial())
        left = self._time_left()
        progress = Progress("trials", config.trials, "trials")
        journal = Journal(self.folder, task, progress, self.resources.gpus_of_a_trial, left)
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                num_samples=1 if population else config.trials,
                search_alg=searcher,
                scheduler=make_scheduler(config, self.space),
                max_concurrent_trials=None if population else concurrency,
                time_budget_s=left,
                reuse_actors=heads,
            ),
            run_config=tune.RunConfig(
                name=RAY,
                storage_path=str(self.folder),
                callbacks=[journal, TBXLoggerCallback()],
                stop=journal,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                # A head is trained again sooner than it is saved; the others save themselves.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        with progress:
            tuner.fit()
        if journal.fault:
            raise WorkError(
                f"{self.folder}: {journal.fault}; when that is mended, call again with --resume"
            )
        ended = searcher.ended if searcher is not None else ""
        if journal.time_is_up:
            journal.end_open_trials()
            ended = f"after {config.minutes:g} minutes"
        if len(journal.trials) < config.trials and not ended:
            # Ray Tune takes Ctrl-C for itself, saves, and returns.
            raise KeyboardInterrupt
        return journal.trials, ended

    def _earlier(self) -> list[Outcome]:
        """What earlier searches found out."""
        outcomes: list[Outcome] = []
        for folder in self.config.warm_start:
            trials = read_trials(folder)
            if not trials:
                raise UsageError(f"--warm-start {folder}: no trials of an earlier search are there")
            metric = self.config.metric
            outcomes += [
                (trial.parameters, trial.best["validation"][metric])
                for trial in trials
                if trial.best
            ]
        return outcomes

    def _lag(self) -> int:
        """How far behind the next trial its knowledge is: as when the search was begun, also on
        a cluster of another size, or its trials would be others."""
        return noted(self.folder, "concurrency", self.resources.concurrency)

    def _time_left(self) -> float | None:
        if not self.config.minutes:
            return None
        return max(1.0, 60 * self.config.minutes - self.seconds.get("features", 0.0))

    def _ranked(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those with a result, the best first, the earlier one of equals."""
        sign = 1.0 if self.lower_is_better else -1.0
        able = [trial for trial in trials if trial.value is not None]
        return sorted(able, key=lambda t: (sign * (t.value or 0.0), t.number))

    def _train_winner(self, best: Trial, home: str | None) -> Winner:
        """Trains the winner where a trial would be, on the node that has the features."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = ray.get_runtime_context().get_node_id()
        config = replace(self.base, **best.parameters, run=self.folder / WINNER)
        if noted(self.folder, "winner", best.number) != best.number:
            # Of a search that went on, and found a better one.
            shutil.rmtree(config.run, ignore_errors=True)
            note(self.folder, "winner", best.number)
        # What the trial has trained already need not be trained again.
        earlier = self.folder / TRIALS / f"{best.number:04d}"
        if earlier.is_dir() and not config.run.exists():
            shutil.copytree(earlier, config.run, ignore=shutil.ignore_patterns(RAY))
        train = ray.remote(
            num_cpus=self.resources.worker["CPU"],
            num_gpus=self.resources.worker.get("GPU", 0),
            max_retries=RETRIES,
            scheduling_strategy=NodeAffinitySchedulingStrategy(home or here, soft=True),
        )(train_winner)
        say(f"trial {best.number} is the best: trained as it was found, all of its epochs")
        winner: Winner = result(train.remote(config, os.environ.get("BINTALLY_CACHE"), here))
        for name, data in winner.files.items():
            write_atomically(self.folder / WINNER / name, data)
        return winner

    def _capstone(self, features: Mapping[str, Any]) -> dict[str, Any] | None:
        """What the preset comes to as it is, without what --space fixes."""
        import ray

        config = replace(self.config.base(ORIGINAL), device=self.base.device)
        reference = features.get(config.backbone)
        if reference is None or config.batch_size > self.dataset.splits["train"].samples:
            return None
        worker = self.resources.worker
        train = ray.remote(num_cpus=worker["CPU"], num_gpus=worker.get("GPU", 0))(train_head)
        best: dict[str, Any] = result(train.remote(config, reference))
        return best

    def _write_results(
        self,
        trials: Sequence[Trial],
        ended: str,
        best: Trial,
        winner: Winner,
        beside: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """Writes `results.csv`, `best.json` and the report."""
        from tuning.report.page import render_search_report

        config = self.config
        summary = {
            "metric": config.metric,
            "mode": "min" if self.lower_is_better else "max",
            "algorithm": config.algorithm,
            "scheduler": config.scheduler,
            "seed": config.seed,
            "concurrency": self.resources.concurrency,
            "trials": config.trials,
            "ended": ended,
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
            "winner": {"validation": winner.best["validation"], "test": winner.test},
            "capstone": beside and {"validation": beside["validation"]},
            "seconds": self.seconds,
            "gpu_hours": sum(trial.seconds * trial.gpus for trial in trials) / 3600,
        }
        shares = importance(
            self.space,
            [(t.parameters, t.value) for t in trials if t.value is not None],
            lower_is_better=self.lower_is_better,
        )
        page = render_search_report(summary, trials, self.space.to_dict(), importance=shares)
        write_csv(self.folder / CSV, trials)
        write_atomically(self.folder / BEST_TRIAL, (json.dumps(summary, indent=1) + "\n").encode())
        write_atomically(self.folder / SEARCH_REPORT, page.encode())
        return summary

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began
