"""Counts the items in warehouse bins from photos: datasets, loaders and counters for Python.

`Loader` streams batches of a dataset, changed at random as an `Augmentation` says; `Counter` counts
with a checkpoint, `read_dataset` says what a dataset holds. What is not named in `__all__` may
change from one version to the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bintally.counting.counter import Counter as Counter
    from bintally.counting.decision import Answer as Answer
    from bintally.dataset.manifest import Dataset as Dataset
    from bintally.dataset.manifest import read_dataset as read_dataset
    from bintally.errors import UsageError as UsageError
    from bintally.errors import WorkError as WorkError
    from bintally.loading.augmentation import Augmentation as Augmentation
    from bintally.loading.batches import Batch as Batch
    from bintally.loading.loader import Loader as Loader

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Augmentation",
    "Batch",
    "Counter",
    "Dataset",
    "Loader",
    "UsageError",
    "WorkError",
    "read_dataset",
]

MODULES = {
    "Answer": "bintally.counting.decision",
    "Augmentation": "bintally.loading.augmentation",
    "Batch": "bintally.loading.batches",
    "Counter": "bintally.counting.counter",
    "Dataset": "bintally.dataset.manifest",
    "Loader": "bintally.loading.loader",
    "UsageError": "bintally.errors",
    "WorkError": "bintally.errors",
    "read_dataset": "bintally.dataset.manifest",
}
"""Where each public name is defined: it is imported when it is asked for (PEP 562)."""


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})
