"""Loops that numba compiles at their first use on a machine, and keeps: nobody needs a compiler."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from numba import config, njit

from bintally.storage.cache import cache_folder

__all__ = ["compiled"]

if not os.environ.get("NUMBA_CACHE_DIR") and not os.access(Path(__file__).parent, os.W_OK):
    # Numba keeps what it compiled beside the source. An installation may be read-only.
    vars(config)["CACHE_DIR"] = str(cache_folder() / "numba")

compiled = partial(njit, nogil=True, cache=True, error_model="numpy")
"""As numba's `njit`; `fastmath` where the last bit of a float decides nothing."""
