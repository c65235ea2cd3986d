"""Connecting to a Ray cluster."""

from __future__ import annotations

import logging
import socket

from bintally.command import UsageError

__all__ = ["connect"]


def connect(address: str) -> None:
    """Connects this process to the cluster; `UsageError` if there is none at `address`."""
    import ray
    from ray.exceptions import AuthenticationError

    try:
        # Ray itself would try for minutes before it says that nobody is there.
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if port.isdigit():
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError as error:
        # Ray sends this user's token by itself only to a cluster that it has found by itself.
        raise UsageError(
            f"--ray {address}: the Ray cluster wants its token; set RAY_AUTH_MODE=token, and have "
            "the token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
        ) from error
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--ray {address}: no Ray cluster answers there: {reason}") from error
