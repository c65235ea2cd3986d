"""Where what was computed or fetched once is kept for later."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder", "use_cache"]


def cache_folder() -> Path:
    """`$BINTALLY_CACHE`, or `bintally` in the user's cache folder."""
    if folder := os.environ.get("BINTALLY_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bintally"


def use_cache(folder: str | None) -> None:
    """What a process on another machine calls, to keep things where the one does that sent it."""
    if folder:
        os.environ["BINTALLY_CACHE"] = folder
