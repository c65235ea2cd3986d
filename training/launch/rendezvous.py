"""How the processes of a job find each other, also where some of them replace lost ones."""

from __future__ import annotations

import json
import os
import time
import uuid
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from bintally.errors import WorkError

__all__ = ["JOIN_S", "join_store", "name_attempt"]

JOIN_S = 100.0
"""Within this time all processes have come together, or none goes on waiting."""
POLL_S = 0.05

NEWEST = "bintally/attempt"


def join_store(rank: int, world_size: int) -> Any:
    """The store through which the processes of this attempt, and no earlier ones, find each other.

    Raises `WorkError` where they do not all come within `JOIN_S`.
    """
    try:
        store, _, _ = next(
            rendezvous("env://", rank, world_size, timeout=timedelta(seconds=JOIN_S))
        )
        attempt = name_attempt(store, rank, world_size)
        return dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]
    except (RuntimeError, TimeoutError) as error:
        raise WorkError(_missed(rank, world_size)) from error


def name_attempt(store: Any, rank: int, world_size: int, wait_s: float = JOIN_S) -> str:
    """A name for the present attempt, the same on all of its processes and on no others.

    torchrun's store outlives the processes that it starts, and nothing it tells them sets one
    attempt apart from the next: each agent counts restarts for itself, and not those for a node
    that joined. So the first process makes up a name, and answers those that heard it: who only
    finds the name and the answer of a process that is gone, is not among the answered.

    Raises `TimeoutError`, or torch's `DistStoreError`, after `wait_s`.
    """
    me = uuid.uuid4().hex
    deadline = time.monotonic() + wait_s
    if rank == 0:
        store.set(NEWEST, me)
        heard = [f"{me}/{other}" for other in range(1, world_size)]
        store.wait(heard, timedelta(seconds=wait_s))
        store.set(f"{me}/all", json.dumps([store.get(key).decode() for key in heard]))
        return me
    store.wait([NEWEST], timedelta(seconds=wait_s))
    while time.monotonic() < deadline:
        attempt: str = store.get(NEWEST).decode()
        store.set(f"{attempt}/{rank}", me)
        answer = f"{attempt}/all"
        if store.check([answer]) and me in json.loads(store.get(answer)):
            return attempt
        time.sleep(POLL_S)
    raise TimeoutError


def _missed(rank: int, world_size: int) -> str:
    text = f"rank {rank}: not all {world_size} processes came within {JOIN_S:.0f} s"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # As of PyTorch 2.15: after a node has joined, agents name different stores.
        text += "; where nodes come and go, start torchrun with "
        text += "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
    return text
