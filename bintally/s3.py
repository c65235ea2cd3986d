"""S3 as a place: many small requests, each retried until it succeeds or cannot.

Region, endpoint (`AWS_ENDPOINT_URL` included) and credentials come from where AWS tools take them,
through boto3; the requests go through obstore, at a twentieth of boto3's CPU time. obstore's own
retries are off: they would hide from us when the server asks for less.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from bintally.command import UsageError, WorkError
from bintally.places import LOCK, Entry, ObjectChanged, Place

if TYPE_CHECKING:
    from obstore import PutMode
    from obstore.store import S3Config, S3Store

__all__ = ["S3Prefix"]

T = TypeVar("T")

GIVE_UP_AFTER_S = 180.0
"""How long a request is tried again before the work fails."""
LONGEST_PAUSE_S = 15.0
CONNECT_TIMEOUT = "5s"
READ_TIMEOUT = "10s"
"""A connection that brings nothing for so long has stalled."""

PAGE = 1000
"""Keys in an answer to a listing: S3's most."""
LISTERS = 16
"""Key ranges listed at a time."""

DENIED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "status code: 403")
PUSHED_BACK = ("status code: 503", "SlowDown", "status code: 429")
FINAL = ("NoSuchBucket", "status code: 301", "status code: 400", "status code: 405", *DENIED)
NOT_IMPLEMENTED = "status code: 501"
TRANSIENT = "RequestTimeout"
"""The one 400 that asks for another try."""


class Pace:
    """How many requests may be in flight: halved when the server pushes back, then slowly more.

    Additive increase and multiplicative decrease, as in TCP (Chiu and Jain 1989).
    """

    def __init__(self, limit: float = 1024.0) -> None:
        self.limit = limit
        self._most = limit
        self._in_flight = 0
        self._slowed_at = 0.0
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._in_flight < self.limit)
            self._in_flight += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            if error is None:
                self.limit = min(self._most, self.limit + 1 / self.limit)
            self._in_flight -= 1
            self._changed.notify()

    def slow_down(self) -> None:
        """The server has asked for less; of many such answers at once, one counts."""
        with self._changed:
            now = time.monotonic()
            if now - self._slowed_at > 1:
                self.limit = max(1.0, min(self.limit, self._in_flight) / 2)
                self._slowed_at = now


class S3Prefix(Place):
    """The objects of an S3 bucket whose keys begin with a prefix."""

    def __init__(self, url: str, bucket: str, prefix: str, anonymous: bool) -> None:
        self.url = url
        self.bucket = bucket
        self.prefix = prefix
        self.anonymous = anonymous

    def __getstate__(self) -> dict[str, Any]:
        # Another process opens connections, and finds the server's pace, by itself. Endpoint and
        # region, which are looked up for a quarter of a second, go along; credentials never do.
        return {k: v for k, v in self.__dict__.items() if k not in ("_store", "_pace")}

    @cached_property
    def _pace(self) -> Pace:
        return Pace()

    @cached_property
    def _endpoint(self) -> tuple[str, str]:
        """The URL and the region that the environment and the profile ask for."""
        import boto3
        from botocore.exceptions import BotoCoreError

        try:
            session = boto3.Session()
            meta = session.client("s3", region_name=session.region_name or "us-east-1").meta
        except BotoCoreError as error:
            raise self._bad_settings(error) from error
        return meta.endpoint_url, meta.region_name

    @cached_property
    def _store(self) -> S3Store:
        import boto3
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
        from obstore.store import S3Store

        endpoint, region = self._endpoint
        try:
            session = boto3.Session()
            credentials = None if self.anonymous else session.get_credentials()
        except BotoCoreError as error:
            raise self._bad_settings(error) from error
        if credentials is None and not self.anonymous:
            raise UsageError(
                f"{self.url}: no AWS credentials found; set AWS_PROFILE or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or pass --anonymous for a public bucket"
            )
        config: S3Config = {"region": region, "skip_signature": self.anonymous}
        if not endpoint.endswith(".amazonaws.com"):
            config["endpoint"] = endpoint
        return S3Store(
            self.bucket,
            prefix=self.prefix or None,
            config=config,
            credential_provider=None if self.anonymous else Boto3CredentialProvider(session),
            client_options={
                "allow_http": endpoint.startswith("http://"),
                "connect_timeout": CONNECT_TIMEOUT,
                "read_timeout": READ_TIMEOUT,
                "timeout": "300s",
            },
            retry_config={"max_retries": 0},
        )

    def _bad_settings(self, error: Exception) -> UsageError:
        return UsageError(f"{self.url}: the AWS settings do not work: {error}")

    def check(self) -> None:
        # A wrong address should say so in seconds.
        self._persist(lambda: next(iter(self._store.list(chunk_size=1)), None), "", patience_s=2.0)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        first = self._list_range(prefix, None, None, most=PAGE)
        yield from first
        if len(first) < PAGE:
            return
        # More than a page: ABID's ids begin with digits, so their first two divide the rest.
        # A page takes S3 a tenth of a second or two, and knows the next one only when it is there.
        start = first[-1].path
        folder = f"{prefix}/" if prefix else ""
        borders = [f"{folder}{number:02d}" for number in range(100)]
        borders = [start, *(border for border in borders if border > start)]
        ends: list[str | None] = [*borders[1:], None]
        with ThreadPoolExecutor(LISTERS) as pool:
            for found in pool.map(lambda b, e: self._list_range(prefix, b, e), borders, ends):
                yield from found

    def _list_range(
        self, prefix: str, after: str | None, last: str | None, most: int | None = None
    ) -> list[Entry]:
        """The objects whose path is above `after` and not above `last`; the first `most`."""

        def listed() -> list[Entry]:
            found: list[Entry] = []
            for page in self._store.list(prefix or None, offset=after, chunk_size=PAGE):
                for item in page:
                    if last is not None and item["path"] > last:
                        return found
                    if item["path"] != LOCK:
                        found.append(Entry(item["path"], item["size"], item["e_tag"] or ""))
                if most is not None and len(found) >= most:
                    return found[:most]
            return found

        return self._persist(listed, prefix)

    def get(self, path: str) -> bytes:
        return self._persist(lambda: self._store.get(path).bytes().to_bytes(), path)

    def fetch(self, entry: Entry) -> bytes:
        def fetched() -> bytes:
            answer = self._store.get(entry.path)
            data = answer.bytes().to_bytes()
            # Not every server that speaks S3 sends an ETag with an object.
            version = answer.meta["e_tag"] or entry.version
            if (len(data), version) != (entry.size_bytes, entry.version):
                raise ObjectChanged(entry.path)
            return data

        for _ in range(CHANGES_DOUBTED):
            try:
                return self._persist(fetched, entry.path)
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
            except (AlreadyExistsError, PreconditionError, FileNotFoundError):
                return None
            except BaseError as error:
                if NOT_IMPLEMENTED not in str(error):
                    raise
                answer = self._store.put(path, data)
            return answer["e_tag"] or ""

        return self._persist(put, path)

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._persist(lambda: self._store.delete(path), path)

    def _persist(
        self, request: Callable[[], T], path: str, patience_s: float = GIVE_UP_AFTER_S
    ) -> T:
        """Tries a request until it succeeds, cannot succeed, or patience ends."""
        from obstore.exceptions import BaseError

        began, pause_s = time.monotonic(), 0.1
        while True:
            try:
                with self._pace:
                    return request()
            except (FileNotFoundError, ObjectChanged):
                raise
            except (BaseError, OSError) as error:
                text = str(error)
                waited = time.monotonic() - began
                final = any(word in text for word in FINAL) and TRANSIENT not in text
                if final or waited > patience_s:
                    self._explain(error, path)
                if any(word in text for word in PUSHED_BACK):
                    self._pace.slow_down()
            # Full jitter: requests that failed together do not come back together.
            time.sleep(random.uniform(0, pause_s))
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)

    def _explain(self, error: Exception, path: str) -> NoReturn:
        """Turns obstore's error, a page of debug output, into a line that says what to do."""
        from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

        where = f"{self.url}/{path}" if path else self.url
        text = str(error)
        if "NoSuchBucket" in text:
            raise UsageError(f"{where}: no such bucket") from error
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or any(
            word in text for word in DENIED
        ):
            remedy = (
                "this bucket is not public; call without --anonymous"
                if self.anonymous
                else "check the AWS credentials, or pass --anonymous for a public bucket"
            )
            raise UsageError(f"{where}: access denied; {remedy}") from error
        if "error sending request" in text:
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            remedy = f"is AWS_ENDPOINT_URL={endpoint} right?" if endpoint else "is there a network?"
            raise WorkError(f"{where}: S3 does not answer; {remedy}") from error
        raise WorkError(f"{where}: {text.splitlines()[0]}") from error


CHANGES_DOUBTED = 3
"""How often an object must come otherwise than it was listed before that is believed."""
