"""The commands of stage 3: `python -m tuning search|submit`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields

from bintally.command import main
from tuning.config import SearchConfig


@dataclass(frozen=True)
class Search(SearchConfig):
    """Try many trainings on a Ray cluster, and train the best.

    A frozen backbone sees every photo once; its trials are heads, and take seconds. With
    --trainable all each trial is a training of its own, on a share of a GPU, one, or several.
    """

    def execute(self) -> int:
        from tuning.results import CSV, REPORT
        from tuning.search import search
        from tuning.winner import WINNER

        config = SearchConfig(**{f.name: getattr(self, f.name) for f in fields(SearchConfig)})
        told = search(config)
        best, metric = told["best"], told["metric"]
        settings = ", ".join(f"{name} {value}" for name, value in best["parameters"].items())
        print(f"best: trial {best['number']}, validation {metric} {best['value']:.4f}: {settings}")
        if (test := told["winner"]["test"]) is not None:
            always = test["baseline"]
            print(
                f"test, {test['samples']:,} photos seen once: {metric} {test[metric]:.4f}, "
                f"accuracy {test['accuracy']:.2%}, RMSE {test['rmse']:.3f} "
                f"(always {always['count']}: {always['accuracy']:.2%}, {always['rmse']:.3f})"
            )
        print(f"winner: {self.output / WINNER}")
        print(f"trials: {self.output / CSV}")
        print(f"report: {self.output / REPORT}")
        return 0


if __name__ == "__main__":
    sys.exit(
        main(
            Search,
            prog="python -m tuning",
            description="Stage 3: many trainings, one winner.",
        )
    )
