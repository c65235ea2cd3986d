"""Connecting to a Ray cluster that the user names."""

from __future__ import annotations

import logging
import socket

from bintally.command import UsageError

__all__ = ["connect"]


def connect(address: str) -> None:
    """Joins the Ray cluster at `address`; `UsageError` if there is none."""
    import ray

    try:
        # Ray itself would try for minutes before it says that nobody is there.
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if port.isdigit():
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--ray {address}: no Ray cluster answers there: {reason}") from error
