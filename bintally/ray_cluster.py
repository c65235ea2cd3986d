"""Connecting to a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import tempfile
from pathlib import Path
from typing import Any

from bintally.errors import UsageError, WorkError
from bintally.machine import socket_folder

__all__ = ["connect"]

HOME = Path(__file__).resolve().parent.parent
"""Where this project's packages lie."""


def connect(address: str, **options: Any) -> None:
    """Connects this process to the cluster; `UsageError` if there is none at `address`, `WorkError`
    if one of this machine alone (`local`), with `options` of `ray.init`, does not start."""
    if socket_folder() != tempfile.gettempdir():
        os.environ.setdefault("RAY_TMPDIR", socket_folder())
    if address == "local":
        # Ray listens on every interface, for whoever may run code in it. Its own way is a token
        # that all of a user's processes share, in a home that has to be there.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray

    nobody = f"--ray {address}: no Ray cluster answers there"
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        # Ray itself would try for minutes before it says that nobody is there.
        if port.isdigit():
            socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UsageError(f"{nobody}: {error}") from error
    try:
        # Its workers look for modules in the folder where this is called, before all others; the
        # user's may have packages that are called as ours.
        with contextlib.chdir(HOME):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # Ray raises a bare one where its processes do not start.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if address == "local":
            raise WorkError(f"Ray does not start on this machine: {reason}") from error
        # Ray does not say so, and sends a token of itself only where it has found the cluster.
        token = (
            "; one that wants a token is given it with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
            if port.isdigit() and "RAY_AUTH_MODE" not in os.environ
            else ""
        )
        raise UsageError(f"{nobody}: {reason}{token}") from error
