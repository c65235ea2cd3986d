"""The settings of a server."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from bintally.errors import UsageError
from bintally.options import EngineName, PrecisionName

__all__ = ["TOKEN_VARIABLE", "Limits", "ServeConfig"]

TOKEN_VARIABLE = "BINTALLY_TOKEN"
"""The environment variable that holds the bearer token; a command line is for everyone to read."""


@dataclass(frozen=True)
class Limits:
    """What a request may ask for. Beyond them it is refused, before it costs anything."""

    photos: int
    """Photos of a request."""
    photo_pixels: int
    body_bytes: int
    held_bytes: int
    """Of all requests that are being read or waiting."""
    queue: int
    """Photos waiting, of all requests."""
    receive_s: float
    """From a request's first byte to its last."""
    answer_s: float
    """From there to its answer."""


@dataclass(frozen=True)
class ServeConfig:
    """Settings of `bintally serve`."""

    # On a cluster they come from a file, in which a name may be misspelled.
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    checkpoint: Path
    """best.pt or last.pt of a run. When the file is replaced, the new one is taken in."""
    port: int = 8080
    """0 takes a free one."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets the network in, so set a token or a gateway first."""
    token_file: Path | None = None
    """File with the bearer token that requests must carry; else BINTALLY_TOKEN in the environment,
    else none is asked for."""

    ray: str | None = None
    """Deploy on the Ray cluster at this address (auto, HOST:PORT), behind Ray Serve's proxies, and
    end; every node must have bintally, and the checkpoint under the same name."""

    replicas: int = 0
    """Processes that count. 0 is one for each GPU, or for each core of a CPU, up to 4; of a
    cluster, one."""
    max_replicas: int = 0
    """More than --replicas, on a cluster: load decides how many there are, from --replicas to
    this."""
    gpus_per_replica: float = -1.0
    """Share of a GPU: 0.5 puts two replicas on one. -1 is 1 where there are GPUs, 0 elsewhere."""
    precision: PrecisionName = "auto"
    """auto is what `evaluate` takes: bf16 where the hardware computes it, fp32 elsewhere."""
    engine: EngineName = "auto"
    """What decodes. auto is PyTorch's engine for replicas on the CPU, DALI on a GPU."""

    batch: int = 0
    """Most photos that go through the model together. 0 is 8 on a CPU, 32 on a GPU."""
    batch_wait_ms: float = 5.0
    """How long a photo waits for others to fill a batch, while every replica is busy."""

    max_photos: int = 64
    """Photos of a request."""
    max_megapixels: float = 25.0
    """Of a photo."""
    max_megabytes: float = 25.0
    """Of a request."""
    max_queue: int = 256
    """Photos waiting; requests beyond are asked to come again (429)."""
    timeout_s: float = 25.0
    """Time to send a request, and time to answer it."""

    def check(self) -> None:
        """Raises `UsageError` for a value that makes no sense."""
        for name, least, most in RANGES:
            value = getattr(self, name)
            if not least <= value <= most:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{flag} {value:g}: must be {least:g} to {most:g}")
        if self.max_replicas and self.max_replicas < max(1, self.replicas):
            raise UsageError(
                f"--max-replicas {self.max_replicas}: must be at least --replicas {self.replicas}"
            )
        if 1 < self.gpus_per_replica != int(self.gpus_per_replica):
            raise UsageError(
                f"--gpus-per-replica {self.gpus_per_replica:g}: above 1, only whole GPUs"
            )
        if self.max_queue < self.max_photos:
            raise UsageError(
                f"--max-queue {self.max_queue}: must be at least --max-photos {self.max_photos}"
            )

    @property
    def limits(self) -> Limits:
        """What a request may ask for."""
        body = int(self.max_megabytes * 1e6)
        return Limits(
            photos=self.max_photos,
            photo_pixels=int(self.max_megapixels * 1e6),
            body_bytes=body,
            held_bytes=max(body + body // 5, 20_000_000),
            queue=self.max_queue,
            receive_s=self.timeout_s,
            answer_s=self.timeout_s,
        )

    def read_token(self) -> str | None:
        """The bearer token, if one is asked for. Raises `UsageError` for one that cannot be."""
        if self.token_file is None:
            token, where = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
            if token is None:
                return None
        else:
            where = f"--token-file {self.token_file}"
            try:
                token = self.token_file.read_text("ascii").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"{where}: cannot be read: {error}") from error
        if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
            raise UsageError(
                f"{where}: a token is at least {MIN_TOKEN} letters, digits or signs in one word"
            )
        return token

    def bind(self) -> socket.socket:
        """The listening socket. Raises `UsageError` where it cannot be had."""
        try:
            family = (
                socket.AF_INET6 if ipaddress.ip_address(self.host).version == 6 else socket.AF_INET
            )
        except ValueError:
            family = socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it. Without it an answer's body waits for the client to acknowledge
        # its head, which takes 40 ms; asyncio sees to it only for sockets of its own making.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Else the kernel keeps megabytes of answers for each client that does not read them.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        try:
            listener.bind((self.host, self.port))
        except OSError as error:
            listener.close()
            raise UsageError(
                f"--host {self.host} --port {self.port}: cannot be listened on: {error.strerror}"
            ) from error
        return listener


MIN_TOKEN = 16
SEND_BUFFER_BYTES = 64 * 1024
"""The answer to a hundred photos."""

RANGES = (
    ("port", 0, 65535),
    ("replicas", 0, 1024),
    ("max_replicas", 0, 1024),
    ("gpus_per_replica", -1, 64),
    ("batch", 0, 4096),
    ("batch_wait_ms", 0, 10_000),
    ("max_photos", 1, 4096),
    ("max_megapixels", 0.01, 50),
    ("max_megabytes", 0.1, 1000),
    ("max_queue", 1, 1_000_000),
    ("timeout_s", 1, 600),
)
