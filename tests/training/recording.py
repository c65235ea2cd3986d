"""`python -m tests.training.recording fit …`: trains, and writes down which photos it was given.

Each process writes `RANK.json` into the folder `$RECORDING`: a list of (epoch, indices of a batch).
"""

from __future__ import annotations

import json
import os
import runpy
from collections.abc import Iterator
from pathlib import Path

from bintally.loading.batches import Batch
from training.config import FitConfig
from training.inputs import PhotoInputs

seen: list[tuple[int, list[int]]] = []
of_photos = PhotoInputs.batches


def batches(self: PhotoInputs, epoch: int, first_step: int) -> Iterator[Batch]:
    for batch in of_photos(self, epoch, first_step):
        seen.append((epoch, batch.indices.tolist()))
        yield batch


if __name__ == "__main__":
    PhotoInputs.batches = batches  # type: ignore[method-assign]
    # Photos are to be seen, of a frozen backbone as well.
    FitConfig.uses_features = False  # type: ignore[assignment, method-assign]
    try:
        runpy.run_module("training", run_name="__main__")
    finally:
        Path(os.environ["RECORDING"], f"{os.environ['RANK']}.json").write_text(json.dumps(seen))
