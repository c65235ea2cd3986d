"""Connecting to a Ray cluster."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import tempfile

from bintally.errors import UsageError, WorkError
from bintally.machine import socket_folder

__all__ = ["connect", "keep_to_ourselves", "prepare_ray"]


def prepare_ray() -> None:
    """Has a Ray that starts on this machine keep its sockets where their names are short enough; to
    be called before Ray is imported."""
    if socket_folder() != tempfile.gettempdir():
        os.environ.setdefault("RAY_TMPDIR", socket_folder())


def keep_to_ourselves() -> None:
    """Has a Ray that starts on this machine obey this process and its children alone; to be called
    before Ray is imported.

    Ray listens on every interface, for whoever may run code in it. Its own way is a token that all
    of a user's processes share, in a home that has to be there.
    """
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def connect(address: str) -> None:
    """Connects this process to the cluster; `UsageError` if there is none at `address`, `WorkError`
    if one of this machine alone (`local`) does not start."""
    prepare_ray()
    if address == "local" and "RAY_AUTH_MODE" not in os.environ:
        keep_to_ourselves()
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
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
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
