"""Connecting to a Ray cluster."""

from __future__ import annotations

import logging
import os
import secrets
import socket

from bintally.command import UsageError
from bintally.machine import socket_folder

__all__ = ["connect"]


def connect(address: str) -> None:
    """Connects this process to the cluster; `UsageError` if there is none at `address`."""
    if address == "local":
        # Ray's own processes. Only those who know the token may run code in them; without one in
        # the environment, which Ray reads when it is imported, it would look for it in the user's
        # home, and there may be none.
        os.environ.setdefault("RAY_TMPDIR", socket_folder())
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
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
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        # Ray does not say so, and sends a token of itself only where it has found the cluster.
        token = (
            "; one that wants a token is given it with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
            if port.isdigit() and "RAY_AUTH_MODE" not in os.environ
            else ""
        )
        raise UsageError(f"{nobody}: {reason}{token}") from error
