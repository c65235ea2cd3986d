"""Which settings are tried next: asked and told in the order of the trials, so that the same seed
gives the same trials however long each of them takes.

With several trials at a time, what a sampler knows when it is asked depends on who came in first.
Here it does not: trial n is drawn knowing the results of the trials up to n − `lag` and no others,
and asking waits until they are there. So `lag` is the most trials at a time that there can be.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tuning.space import Choice, Range, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from tuning.config import AlgorithmName

__all__ = ["Study", "importance"]

Outcome = tuple[Mapping[str, Any], float]
"""Settings that were tried, and the objective."""


class Study:
    """An Optuna study in order."""

    def __init__(
        self,
        space: Space,
        algorithm: AlgorithmName,
        *,
        lower_is_better: bool,
        seed: int,
        lag: int,
        patience: int = 0,
        earlier: Sequence[Outcome] = (),
    ) -> None:
        """`earlier` are outcomes of another search: those that lie in the space are learned from.

        With `patience`, there is nothing to ask any more after so many trials without a better one.
        """
        import optuna

        _silence()
        self._distributions = _distributions(space)
        sampler: optuna.samplers.BaseSampler
        if algorithm == "optuna":
            # Of trials that are not told yet it thinks the worst, so as not to try them twice.
            sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        else:
            sampler = optuna.samplers.RandomSampler(seed=seed)
        self._study = optuna.create_study(
            sampler=sampler, direction="minimize" if lower_is_better else "maximize"
        )
        for parameters, value in earlier:
            if parameters.keys() == self._distributions.keys() and all(
                d.single() or d._contains(d.to_internal_repr(parameters[name]))
                for name, d in self._distributions.items()
            ):
                self._study.add_trial(
                    optuna.trial.create_trial(
                        params=dict(parameters), distributions=self._distributions, value=value
                    )
                )
        self.num_learned = len(self._study.trials)
        """Of the earlier outcomes."""
        grid = space.grid() if algorithm == "grid" else []
        for point in grid:
            self._study.enqueue_trial(point)
        self.most = len(grid) or None
        """Trials of a grid."""
        self._lag, self._patience = lag, patience
        self._sign = -1.0 if lower_is_better else 1.0
        self._asked: list[int] = []
        """Optuna's numbers of our trials."""
        self._results: dict[int, float | None] = {}
        self._told = 0
        self._best, self._best_at = float("-inf"), -1

    @property
    def ready(self) -> bool:
        """Whether all is told that the next trial depends on."""
        number = len(self._asked)
        return all(n in self._results for n in range(self._told, number - self._lag + 1))

    @property
    def exhausted(self) -> str:
        """Why there is nothing to ask any more, if there is not. Asked when `ready`."""
        self._learn()
        if self.most is not None and len(self._asked) >= self.most:
            return "every combination was tried"
        if self._patience and self._told - 1 - self._best_at >= self._patience:
            return f"no better trial in {self._patience}"
        return ""

    def ask(self) -> dict[str, Any]:
        """The settings of the next trial."""
        assert self.ready, "depends on trials that are not told"
        self._learn()
        trial = self._study.ask(self._distributions)
        self._asked.append(trial.number)
        return dict(trial.params)

    def tell(self, number: int, value: float | None) -> None:
        """The objective of a trial; None where it came to none."""
        self._results[number] = value

    def _learn(self) -> None:
        """Tells Optuna what the next trial may know."""
        import optuna

        while self._told <= len(self._asked) - self._lag and self._told in self._results:
            value = self._results[self._told]
            state = optuna.trial.TrialState.FAIL if value is None else None
            self._study.tell(self._asked[self._told], value, state=state)
            if value is not None and self._sign * value > self._best:
                self._best, self._best_at = self._sign * value, self._told
            self._told += 1


def importance(
    space: Space, outcomes: Sequence[Outcome], *, lower_is_better: bool
) -> dict[str, float]:
    """The share of each setting in what tells good trials from others; empty of too few trials.

    PED-ANOVA (Watanabe, Bansal and Hutter 2023).
    """
    import optuna

    _silence()
    distributions = _distributions(space)
    varied = {name for name, d in distributions.items() if not d.single()}
    if len(outcomes) < ENOUGH or len({value for _, value in outcomes}) < 2 or len(varied) < 2:
        return {}
    study = optuna.create_study(direction="minimize" if lower_is_better else "maximize")
    for parameters, value in outcomes:
        study.add_trial(
            optuna.trial.create_trial(
                params={name: parameters[name] for name in distributions},
                distributions=distributions,
                value=value,
            )
        )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    shares = optuna.importance.get_param_importances(
        study, evaluator=evaluator, params=sorted(varied)
    )
    return dict(shares)


ENOUGH = 8
"""Trials below which an importance says nothing."""


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    from optuna import distributions

    made: dict[str, BaseDistribution] = {}
    for name, dimension in space.dimensions.items():
        if isinstance(dimension, Choice):
            made[name] = distributions.CategoricalDistribution(dimension.values)
        elif dimension.whole:
            low, high = int(dimension.low), int(dimension.high)
            made[name] = distributions.IntDistribution(low, high, log=dimension.log)
        else:
            made[name] = distributions.FloatDistribution(*_ends(dimension), log=dimension.log)
    return made


def _ends(dimension: Range) -> tuple[float, float]:
    return float(dimension.low), float(dimension.high)


def _silence() -> None:
    import optuna

    logging.getLogger("optuna").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
