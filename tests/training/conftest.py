"""What the tests of training share: a run that is over."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.runs import settings
from training.fit import fit


@pytest.fixture(scope="session")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    run = tmp_path_factory.mktemp("finished")
    fit(settings(shards, run))
    return run
