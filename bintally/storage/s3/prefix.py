"""S3 as a place: many small requests, each retried until it succeeds or cannot.

Region, endpoint (`AWS_ENDPOINT_URL` included) and credentials come from where AWS tools take them,
through boto3; the requests go through obstore, at a twentieth of boto3's CPU time. obstore's own
retries are off: they would hide from us when the server asks for less. It cannot name every key
that S3 allows (`a//b`), so a page of a listing that has such a one is asked for through boto3.
"""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from bintally.errors import WorkError
from bintally.storage.place import LOCK, Entry, ObjectChanged, ObjectRefused, Place
from bintally.storage.s3.address import Address, boto_client, find_address, open_session
from bintally.storage.s3.errors import (
    NOT_IMPLEMENTED,
    PUSHED_BACK,
    concerns_one_object,
    explain,
    is_final,
    problem_of,
)
from bintally.storage.s3.listing import Page, is_plain, list_in_parallel
from bintally.storage.s3.rate_limiter import RateLimiter

if TYPE_CHECKING:
    from datetime import datetime

    from obstore import ObjectMeta, PutMode
    from obstore.store import S3Config, S3Store

__all__ = ["S3Prefix"]

T = TypeVar("T")

GIVE_UP_AFTER_S = 180.0
"""How long a request may go on failing before the work fails."""
LONGEST_PAUSE_S = 15.0
CONNECT_TIMEOUT = "5s"
READ_TIMEOUT = "10s"
"""A connection that brings nothing for so long has stalled."""
REQUEST_TIMEOUT = "6h"
"""Of one that does bring something: a large shard on a thin line is no error."""

PIECE = 2**22
PAGE = 1000
"""Keys in an answer to a listing: S3's most."""
LISTERS = 16
"""Pages asked for at a time."""


class Client:
    """What a place asks through."""

    def __init__(self, place: str, bucket: str, prefix: str, anonymous: bool, at: Address) -> None:
        from obstore.auth.boto3 import Boto3CredentialProvider
        from obstore.store import S3Store

        session = open_session(place, anonymous)
        config: S3Config = {
            "endpoint": at.url,
            # It has the bucket's name in it, be it in the host or in the path.
            "virtual_hosted_style_request": True,
            "region": at.region,
            "skip_signature": anonymous,
        }
        self.store = S3Store(
            bucket,
            prefix=prefix or None,
            config=config,
            credential_provider=None if anonymous else Boto3CredentialProvider(session),
            client_options={
                "allow_http": at.url.startswith("http://"),
                "connect_timeout": CONNECT_TIMEOUT,
                "read_timeout": READ_TIMEOUT,
                "timeout": REQUEST_TIMEOUT,
            },
            retry_config={"max_retries": 0},
        )
        self.limiter = RateLimiter()
        self._place, self._session, self._anonymous, self._at = place, session, anonymous, at

    @cached_property
    def boto(self) -> Any:
        """boto3's client, for the keys that obstore cannot name."""
        return boto_client(self._place, self._session, self._anonymous, self._at.region)


@lru_cache(maxsize=16)
def _client(
    _identity: str, place: str, bucket: str, prefix: str, anonymous: bool, at: Address
) -> Client:
    """The client of a place and of all its copies in this process.

    A worker gets a copy with each job; connections, and what is known of the server's pace, stay.
    """
    return Client(place, bucket, prefix, anonymous, at)


class S3Prefix(Place):
    """The objects of an S3 bucket whose keys begin with a prefix."""

    def __init__(self, url: str, bucket: str, prefix: str, anonymous: bool) -> None:
        self.url = url
        self.bucket = bucket
        self.prefix = prefix
        self.anonymous = anonymous
        self._identity = uuid.uuid4().hex

    def __getstate__(self) -> dict[str, Any]:
        # Another process opens connections, and finds the server's pace, by itself. The address,
        # which takes a second to look up, goes along; credentials never do.
        return {k: v for k, v in self.__dict__.items() if k != "_connected"}

    @cached_property
    def _address(self) -> Address:
        session = open_session(self.url, self.anonymous)
        return find_address(self.url, self.bucket, session, self.anonymous)

    @cached_property
    def _connected(self) -> Client:
        return _client(
            self._identity, self.url, self.bucket, self.prefix, self.anonymous, self._address
        )

    @property
    def _store(self) -> S3Store:
        return self._connected.store

    def check(self) -> None:
        # A wrong address should say so in seconds.
        self._page("", None, patience_s=2.0)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        folder = f"{prefix}/" if prefix else ""
        first = self._page(folder, None)
        yield from first.entries
        if first.last is None:
            return
        second = self._page(folder, first.last)
        if any(entry.path <= first.last for entry in second.entries):
            # A server that lists in no order, or that cannot begin above a key.
            given = {entry.path for entry in first.entries}
            yield from (e for e in self._list_in_sequence(folder) if e.path not in given)
            return
        yield from second.entries
        if second.last is not None:
            yield from list_in_parallel(
                lambda after: self._page(folder, after), second.last, folder, LISTERS
            )

    def _page(self, folder: str, after: str | None, patience_s: float | None = None) -> Page:
        """The first objects of a folder whose path is above `after`."""
        from obstore.exceptions import InvalidPathError

        def listed() -> list[ObjectMeta]:
            pages = self._store.list(folder.rstrip("/") or None, offset=after, chunk_size=PAGE)
            return [*next(iter(pages), [])]

        if after is None or is_plain(after):
            with contextlib.suppress(InvalidPathError):
                found = self._persist(listed, folder.rstrip("/"), patience_s=patience_s)
                # obstore leaves out the slash by which an empty object is a folder.
                if all(item["size"] for item in found):
                    entries = [
                        Entry(o["path"], o["size"], _version(o["e_tag"], o["last_modified"]))
                        for o in found
                        if o["path"] != LOCK
                    ]
                    return Page(entries, found[-1]["path"] if len(found) == PAGE else None)
        start = {} if after is None else {"StartAfter": self._root + after}
        return self._exact_page(folder, start)[0]

    def _list_in_sequence(self, folder: str) -> Iterator[Entry]:
        position: dict[str, str] | None = {}
        while position is not None:
            page, position = self._exact_page(folder, position)
            yield from page.entries

    def _exact_page(
        self, folder: str, position: Mapping[str, str]
    ) -> tuple[Page, dict[str, str] | None]:
        """A page of any keys there are, and the position of the next."""
        answer = self._persist(
            lambda: self._connected.boto.list_objects_v2(
                Bucket=self.bucket, Prefix=self._root + folder, MaxKeys=PAGE, **position
            ),
            folder.rstrip("/"),
        )
        found = [
            (item["Key"].removeprefix(self._root), item) for item in answer.get("Contents", [])
        ]
        entries = [
            Entry(path, item["Size"], _version(item.get("ETag"), item["LastModified"]))
            for path, item in found
            # Empty objects that end in a slash are what AWS's console calls folders.
            if path not in ("", LOCK) and not (path.endswith("/") and not item["Size"])
        ]
        if not answer.get("IsTruncated"):
            return Page(entries, None), None
        token = {"ContinuationToken": answer["NextContinuationToken"]}
        return Page(entries, found[-1][0]), token

    @property
    def _root(self) -> str:
        return f"{self.prefix}/" if self.prefix else ""

    def get(self, path: str) -> bytes:
        return self._persist(lambda: self._store.get(path).bytes().to_bytes(), path)

    def download(self, path: str, file: BinaryIO) -> None:
        """Writes an object into a file, in pieces; `FileNotFoundError` if there is none."""

        def downloaded() -> None:
            file.truncate(file.seek(0))
            for piece in self._store.get(path).stream(min_chunk_size=PIECE):
                try:
                    file.write(piece)
                except OSError as error:  # It is not S3's fault, and stays.
                    raise WorkError(f"no room to bring {path} here: {error.strerror}") from error

        self._persist(downloaded, path)

    def fetch(self, entry: Entry) -> bytes:
        def fetched() -> bytes:
            answer = self._store.get(entry.path)
            data = answer.bytes().to_bytes()
            version = _version(answer.meta["e_tag"], answer.meta["last_modified"])
            # Not every server sends an ETag with an object, and not every list has it.
            known = entry.version and version.startswith(AT) == entry.version.startswith(AT)
            if len(data) != entry.size_bytes or (known and version != entry.version):
                raise ObjectChanged(entry.path)
            return data

        for _ in range(CHANGES_DOUBTED):
            try:
                return self._persist(fetched, entry.path, listed=True)
            except ObjectChanged:
                # A body may have been cut short on its way by what stands between.
                continue
        raise ObjectChanged(entry.path)

    def put(self, path: str, *pieces: bytes) -> None:
        # Of one piece the length is known: a small one takes a single request then, and not three.
        data = pieces[0] if len(pieces) == 1 else pieces
        self._persist(lambda: self._store.put(path, data), path)

    def get_version(self, path: str) -> tuple[bytes, str]:
        """An object's bytes and its version, for `put_if`; `FileNotFoundError` if there is none."""

        def got() -> tuple[bytes, str]:
            answer = self._store.get(path)
            return answer.bytes().to_bytes(), answer.meta["e_tag"] or ""

        return self._persist(got, path)

    def put_if(self, path: str, data: bytes, version: str | None) -> str | None:
        """Writes an object if it is still of `version`, or, with None, if there is none.

        Returns its new version; None if it was not so. A server that does not know conditions
        writes it in any case.
        """
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        mode: PutMode = "create" if version is None else {"e_tag": version}

        def put() -> str | None:
            try:
                answer = self._store.put(path, data, mode=mode)
            except (AlreadyExistsError, PreconditionError):
                return None
            except FileNotFoundError as error:
                if problem_of(error).code == "NoSuchBucket":
                    raise
                return None
            except BaseError as error:
                if problem_of(error).status != NOT_IMPLEMENTED:
                    raise
                answer = self._store.put(path, data)
            return answer["e_tag"] or ""

        return self._persist(put, path)

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._persist(lambda: self._store.delete(path), path)

    def _persist(
        self,
        request: Callable[[], T],
        path: str,
        *,
        patience_s: float | None = None,
        listed: bool = False,
    ) -> T:
        """Tries a request until it succeeds, cannot succeed, or has failed for so long.

        Of an object that was `listed`, what concerns it alone is an `ObjectRefused`.
        """
        from botocore.exceptions import BotoCoreError, ClientError
        from obstore.exceptions import BaseError, InvalidPathError

        if path and not is_plain(path):
            raise ObjectRefused(f"{path!r}: no key that obstore can ask for")
        limiter, failing_since, pause_s = self._connected.limiter, None, 0.1
        while True:
            try:
                with limiter:
                    return request()
            except (ObjectChanged, InvalidPathError):
                raise
            except (BaseError, BotoCoreError, ClientError, OSError) as error:
                problem = problem_of(error)
                if isinstance(error, FileNotFoundError) and problem.code != "NoSuchBucket":
                    raise
                now = time.monotonic()
                failing_since = failing_since or now
                if is_final(problem) or now - failing_since > (patience_s or GIVE_UP_AFTER_S):
                    if listed and concerns_one_object(problem):
                        raise ObjectRefused(
                            f"{path}: S3 does not hand it out ({problem.code or problem.status})"
                        ) from error
                    where = f"{self.url}/{path}" if path else self.url
                    raise explain(error, where, self._address, self.anonymous) from error
                if problem.status in PUSHED_BACK:
                    limiter.slow_down()
            # Full jitter: requests that failed together do not come back together.
            time.sleep(random.uniform(0, pause_s))
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)


CHANGES_DOUBTED = 3
"""How often an object must come otherwise than it was listed before that is believed."""
AT = "@"
"""Begins a version that is a time, for want of an ETag."""


def _version(e_tag: str | None, modified: datetime) -> str:
    """What tells versions of an object apart: its ETag, without the quotes that some servers leave
    out, and the mark of a weak one that proxies put there."""
    bare = (e_tag or "").removeprefix("W/").strip('"')
    return bare or f"{AT}{modified.timestamp():.0f}"
