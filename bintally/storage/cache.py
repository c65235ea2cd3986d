"""Where what was computed or fetched once is kept for later."""

from __future__ import annotations

import contextlib
import os
import tempfile
from functools import lru_cache
from pathlib import Path

__all__ = ["cache_folder", "use_cache"]


def cache_folder() -> Path:
    """`$BINTALLY_CACHE`, or `bintally` in the user's cache folder; a folder for temporary files
    where that cannot be written to, or where the user has no home."""
    home = _home()
    user = os.environ.get("XDG_CACHE_HOME") or (home and home / ".cache")
    return _writable(os.environ.get("BINTALLY_CACHE") or (f"{user}/bintally" if user else ""))


@lru_cache
def _writable(folder: str) -> Path:
    """The folder, or a temporary one of this user's and nobody else's."""
    if folder:
        with contextlib.suppress(OSError):
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return Path(folder)
    aside = Path(tempfile.gettempdir()) / f"bintally-{os.getuid()}"
    with contextlib.suppress(OSError):
        aside.mkdir(mode=0o700, exist_ok=True)
        if not aside.is_symlink() and aside.stat().st_uid == os.getuid():
            return aside
    return Path(tempfile.mkdtemp(prefix="bintally-"))


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:  # Neither HOME nor an entry in the system's list of users.
        return None


def use_cache(folder: str | None) -> None:
    """What a process on another machine calls, to keep things where the one does that sent it."""
    if folder:
        os.environ["BINTALLY_CACHE"] = folder
