"""The lease of a prefix on S3: an object that its holder writes anew, by conditional puts."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from typing import Any

from bintally.errors import UsageError, WorkError
from bintally.storage.lease import Lease, describe_holder
from bintally.storage.place import LOCK
from bintally.storage.s3.prefix import S3Prefix

__all__ = ["S3Lease"]

logger = logging.getLogger(__name__)

TIME_TO_LIVE_S = 30.0
"""How long an S3 holder may be silent. Longer than S3 waits for the rest of a request (20 s), so
that what a stopped holder was just sending is dead, too, when another one takes over."""
RENEWED_EVERY_S = 5.0


class S3Lease(Lease):
    """An object that its holder keeps renewing."""

    place: S3Prefix

    def __init__(self, place: S3Prefix) -> None:
        super().__init__(place)
        self._renewals = 0
        self._version = self._take()
        self._conditional = self._try_conditions()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lease")
        self._thread.start()

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "token": self.token}

    def check(self) -> None:
        try:
            record, _ = self.place.get_version(LOCK)
        except FileNotFoundError:
            self._lost()
        if not self._is_own(record):
            self._lost()

    def release(self) -> None:
        self._ended.set()
        self._thread.join(TIME_TO_LIVE_S)
        # Nobody takes over what has just been renewed, so what is deleted is our own.
        with suppress(WorkError, UsageError):
            self._renew()
            self.place.delete(LOCK)

    def _take(self) -> str:
        """Writes the object where there is none, or where its holder is silent."""
        seen, since = b"", 0.0
        while True:
            try:
                record, version = self.place.get_version(LOCK)
            except FileNotFoundError:
                self._put_if(None)  # Whose was written shows when it is read.
                continue
            now = time.monotonic()
            self._refuse_foreign(record)
            if self._is_own(record):
                return version
            if not seen:
                logger.warning(
                    f"{self.place}: {describe_holder(record)} has begun to write here; waiting up "
                    f"to {TIME_TO_LIVE_S:.0f} s to see whether it still does"
                )
                seen, since = record, now
            elif record != seen:
                self._refuse(record)
            elif now - since > TIME_TO_LIVE_S:
                self._put_if(version)
                continue
            time.sleep(RENEWED_EVERY_S / 5)

    def _put_if(self, version: str | None) -> str | None:
        return self.place.put_if(LOCK, self._record(self._renewals), version)

    def _try_conditions(self) -> bool:
        """Whether the server refuses what it must; there are some that do not know conditions."""
        refuses = all(self._put_if(version) is None for version in (None, '"no such version"'))
        if not refuses:
            logger.warning(
                f"{self.place}: this S3 server ignores If-Match or If-None-Match, so that "
                "two processes could begin to write here at once; see to it that none does"
            )
        return refuses

    def _keep(self) -> None:
        while not self._ended.wait(RENEWED_EVERY_S):
            try:
                self._renew()
            except (WorkError, UsageError):
                # Either S3 is away, and comes back; or the lease is lost, and `check` says so.
                continue

    def _renew(self) -> None:
        self._renewals += 1
        if not self._conditional:
            self.check()
            self.place.put(LOCK, self._record(self._renewals))
            return
        version = self._put_if(self._version)
        if version is None:
            # Refused: another one has it; or it was ours, tried again after a lost answer.
            self.check()
            _, version = self.place.get_version(LOCK)
        self._version = version
