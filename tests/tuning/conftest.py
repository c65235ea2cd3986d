"""What the tests of searches share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tuning.searches import SPACE


@pytest.fixture(scope="session")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with what is searched."""
    file = tmp_path_factory.mktemp("space") / "space.toml"
    file.write_text(SPACE)
    return file
