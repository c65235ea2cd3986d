"""A command on a Ray cluster, through its job API: sent with the code, followed, or stopped."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bintally.errors import UsageError, WorkError

__all__ = ["pack", "stop", "submit"]

PACKAGES = ("bintally", "sharding", "training", "tuning")
"""What a job needs. Nothing else of the folder that it is sent from travels: no data, no keys."""
CODE = (".py", ".j2", ".html", ".typed", ".yaml")
POLL_S = 0.5
PATIENCE_S = 60.0


def submit(
    address: str,
    words: Sequence[str],
    *,
    files: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    requirements: Path | None = None,
) -> int:
    """Runs `python -m tuning WORDS…` as a job of the cluster; prints its log; its exit code.

    `files` travel beside the code, under their names. `environment` is set for the job. With
    `requirements`, a file of pip's, the cluster makes the job an environment of its own. Raises
    `UsageError` where no cluster answers, and `WorkError` where the job was lost.
    """
    client = _client(address)
    with tempfile.TemporaryDirectory(prefix="bintally-job-") as name:
        folder = Path(name)
        pack(folder, files)
        runtime: dict[str, Any] = {"working_dir": str(folder), "env_vars": dict(environment or {})}
        if requirements is not None:
            runtime["pip"] = str(requirements)
        job = _send(client, address, _entrypoint(words), runtime)
    print(f"job {job}: bintally submit --address {address} --stop {job} ends it", flush=True)
    try:
        asyncio.run(_follow(client, job))
    except KeyboardInterrupt:
        print(f"\nleft alone; job {job} goes on", file=sys.stderr)
        raise
    while not (status := client.get_job_status(job)).is_terminal():
        time.sleep(POLL_S)
    details = client.get_job_info(job)
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        raise WorkError(f"job {job}: was stopped")
    if details.driver_exit_code is None:
        raise WorkError(f"job {job}: {(details.message or 'was lost').strip().splitlines()[-1]}")
    return int(details.driver_exit_code)


def stop(address: str, job: str) -> None:
    """Stops a job. Raises `UsageError` where there is none of that name that runs."""
    client = _client(address)
    try:
        running = client.stop_job(job)
    except RuntimeError as error:
        raise UsageError(f"--stop {job}: {address} knows no such job") from error
    if not running:
        raise UsageError(f"--stop {job}: is over already ({client.get_job_status(job).lower()})")


def pack(folder: Path, files: Sequence[Path]) -> None:
    """Fills a folder with the code of the packages, and with these files.

    Raises `UsageError` for a file that there is not.
    """
    for package in PACKAGES:
        with resources.as_file(resources.files(package)) as source:
            for path in sorted(source.rglob("*")):
                if path.is_file() and path.suffix in CODE:
                    target = folder / package / path.relative_to(source)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, target)
    for file in files:
        if not file.is_file():
            raise UsageError(f"--file {file}: no such file")
        shutil.copy(file, folder / file.name)


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    scheme, separator, rest = address.rpartition("://")
    if separator and scheme not in ("http", "https"):
        raise UsageError(
            f"--address {address}: jobs are sent to the cluster's dashboard, http://HEAD:8265"
        )
    nobody = f"--address {address}: no dashboard of a Ray cluster answers there"
    try:
        url = urlsplit(f"{scheme or 'http'}://{rest.rstrip('/')}")
        port = url.port or (443 if scheme == "https" else 80)
        # Ray itself would try for most of a minute before it says that nobody is there.
        socket.create_connection((url.hostname or "", port), timeout=10).close()
        return JobSubmissionClient(url.geturl())
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{nobody}: {reason}") from error


def _send(client: Any, address: str, entrypoint: str, runtime: dict[str, Any]) -> str:
    """Submits the job; waits for a cluster that has only just been started."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            job: str = client.submit_job(entrypoint=entrypoint, runtime_env=runtime)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > until:
                reason = str(error).strip().splitlines()[0]
                raise WorkError(f"--address {address}: does not take the job: {reason}") from error
            time.sleep(POLL_S)
        else:
            return job


async def _follow(client: Any, job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)


def _entrypoint(words: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "tuning", *words])
