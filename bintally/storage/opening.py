"""Opening a place by its name, and taking its lease."""

from __future__ import annotations

import os
from pathlib import Path

from bintally.errors import UsageError
from bintally.storage.folder import Folder
from bintally.storage.lease import Lease
from bintally.storage.place import Place

__all__ = ["open_place", "take_lease"]


def open_place(url: str | os.PathLike[str], *, anonymous: bool = False) -> Place:
    """The place named `url`; `anonymous` sends unsigned requests to S3."""
    text = os.fspath(url)
    if text.startswith("s3://"):
        bucket, _, prefix = text.removeprefix("s3://").partition("/")
        if not bucket:
            raise UsageError(f"{text}: no bucket is named; write s3://BUCKET or s3://BUCKET/PREFIX")
        from bintally.storage.s3.prefix import S3Prefix

        return S3Prefix(text.rstrip("/"), bucket, prefix.strip("/"), anonymous)
    if "://" in text:
        raise UsageError(f"{text}: not a place; name a folder or s3://BUCKET/PREFIX")
    return Folder(Path(text))


def take_lease(place: Place) -> Lease:
    """The lease of a place, whose folder is made where it is missing.

    `WorkError`, with the holder's name, if another process holds it. Whether a holder on S3 is
    alive shows after seconds; that it is not, after `TIME_TO_LIVE_S`.
    """
    if isinstance(place, Folder):
        from bintally.storage.folder_lease import FolderLease

        return FolderLease(place)
    from bintally.storage.s3.lease import S3Lease
    from bintally.storage.s3.prefix import S3Prefix

    assert isinstance(place, S3Prefix)
    return S3Lease(place)
