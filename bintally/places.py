"""A place is a folder or `s3://bucket/prefix`; both read and write whole objects by relative path.

Objects appear complete or not at all: a folder's files are written aside and renamed, S3 does so
by itself. S3 takes its region, endpoint (`AWS_ENDPOINT_URL` included) and credentials from where
AWS tools take them, through boto3; requests go through obstore, at a twentieth of boto3's CPU time.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bintally.command import UsageError, WorkError

if TYPE_CHECKING:
    from obstore.store import S3Store

__all__ = [
    "Entry",
    "Folder",
    "Place",
    "S3Prefix",
    "delete_temporary_files",
    "open_place",
    "write_atomically",
]

TEMPORARY_SUFFIX = ".bintally-tmp"
"""Nobody else's files are called so, and these may be removed."""


@dataclass(frozen=True)
class Entry:
    """An object in a place."""

    path: str
    size_bytes: int


class Place(ABC):
    """A folder or an S3 prefix. Picklable, and safe to use from several threads."""

    url: str

    @abstractmethod
    def check(self) -> None:
        """Raises `UsageError` unless the place is there and may be read."""

    @abstractmethod
    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """The objects whose path is below the folder `prefix`, in no particular order."""

    @abstractmethod
    def get(self, path: str) -> bytes:
        """An object's bytes; `FileNotFoundError` if there is none."""

    @abstractmethod
    def put(self, path: str, data: bytes) -> None:
        """Writes an object, or replaces it, whole."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Removes an object if it is there."""

    def __str__(self) -> str:
        return self.url


def open_place(url: str | os.PathLike[str], *, anonymous: bool = False) -> Place:
    """The place named `url`; `anonymous` sends unsigned requests to S3."""
    text = os.fspath(url)
    if text.startswith("s3://"):
        bucket, _, prefix = text.removeprefix("s3://").partition("/")
        if not bucket:
            raise UsageError(f"{text}: no bucket is named; write s3://BUCKET or s3://BUCKET/PREFIX")
        return S3Prefix(text.rstrip("/"), bucket, prefix.strip("/"), anonymous)
    if "://" in text:
        raise UsageError(f"{text}: not a place; name a folder or s3://BUCKET/PREFIX")
    return Folder(Path(text))


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file that appears complete or not at all, making its folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes may write the same file; neither may rename what the other is still writing.
    aside = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            # Without it, a power cut after the rename can leave a complete name on an empty file.
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise WorkError(f"{path}: cannot be written: {error.strerror}") from error


def delete_temporary_files(folder: Path) -> None:
    """Removes what interrupted writers left aside in a folder, while nobody writes there."""
    for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)


class Folder(Place):
    """A folder of the local file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def check(self) -> None:
        if not self.root.exists():
            raise UsageError(f"{self.url}: no such folder")
        if not self.root.is_dir():
            raise UsageError(f"{self.url}: not a folder")
        if not os.access(self.root, os.R_OK | os.X_OK):
            raise UsageError(f"{self.url}: no permission to read this folder")

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        pending = [self.root / prefix]
        while pending:
            try:
                with os.scandir(pending.pop()) as found:
                    children = [*found]
            except FileNotFoundError:
                continue
            except PermissionError as error:
                raise UsageError(f"{error.filename}: no permission to read this folder") from error
            for entry in children:
                if entry.is_dir():
                    pending.append(Path(entry.path))
                elif not entry.name.endswith(TEMPORARY_SUFFIX):
                    path = Path(entry.path).relative_to(self.root).as_posix()
                    yield Entry(path, entry.stat().st_size)

    def get(self, path: str) -> bytes:
        try:
            return (self.root / path).read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise WorkError(f"{self.root / path}: cannot be read: {error.strerror}") from error

    def put(self, path: str, data: bytes) -> None:
        write_atomically(self.root / path, data)

    def delete(self, path: str) -> None:
        (self.root / path).unlink(missing_ok=True)


class S3Prefix(Place):
    """The objects of an S3 bucket whose keys begin with a prefix."""

    def __init__(self, url: str, bucket: str, prefix: str, anonymous: bool) -> None:
        self.url = url
        self.bucket = bucket
        self.prefix = prefix
        self.anonymous = anonymous

    def __getstate__(self) -> dict[str, Any]:
        # Another process opens connections of its own.
        return {k: v for k, v in self.__dict__.items() if k != "_store"}

    @cached_property
    def _store(self) -> S3Store:
        return self._connect(max_retries=10)

    def _connect(self, max_retries: int) -> S3Store:
        import boto3
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
        from obstore.store import S3Store

        try:
            session = boto3.Session()
            # A client knows the endpoint and the region that the environment and profile ask for.
            meta = session.client("s3", region_name=session.region_name or "us-east-1").meta
            credentials = None if self.anonymous else session.get_credentials()
        except BotoCoreError as error:
            raise UsageError(f"{self.url}: the AWS settings do not work: {error}") from error
        if credentials is None and not self.anonymous:
            raise UsageError(
                f"{self.url}: no AWS credentials found; set AWS_PROFILE or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or pass --anonymous for a public bucket"
            )
        endpoint = meta.endpoint_url
        return S3Store(
            self.bucket,
            prefix=self.prefix or None,
            region=meta.region_name,
            **({} if endpoint.endswith(".amazonaws.com") else {"endpoint": endpoint}),
            skip_signature=self.anonymous,
            credential_provider=None if self.anonymous else Boto3CredentialProvider(session),
            client_options={"allow_http": endpoint.startswith("http://")},
            retry_config={"max_retries": max_retries},
        )

    def check(self) -> None:
        # A wrong address should say so in seconds, without the ten retries of real work.
        from obstore.exceptions import BaseError

        try:
            next(iter(self._connect(max_retries=2).list(chunk_size=1)), None)
        except (BaseError, OSError) as error:
            self._explain(error)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        from obstore.exceptions import BaseError

        try:
            for page in self._store.list(prefix or None, chunk_size=1000):
                for item in page:
                    yield Entry(item["path"], item["size"])
        except (BaseError, OSError) as error:
            self._explain(error)

    def get(self, path: str) -> bytes:
        from obstore.exceptions import BaseError

        try:
            return self._store.get(path).bytes().to_bytes()
        except FileNotFoundError:
            raise
        except (BaseError, OSError) as error:
            self._explain(error, path)

    def put(self, path: str, data: bytes) -> None:
        from obstore.exceptions import BaseError

        try:
            self._store.put(path, data)
        except (BaseError, OSError) as error:
            self._explain(error, path)

    def delete(self, path: str) -> None:
        from obstore.exceptions import BaseError

        try:
            self._store.delete(path)
        except FileNotFoundError:
            pass
        except (BaseError, OSError) as error:
            self._explain(error, path)

    def _explain(self, error: Exception, path: str = "") -> NoReturn:
        """Turns obstore's error, a page of debug output, into a line that says what to do."""
        from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

        where = f"{self.url}/{path}" if path else self.url
        text = str(error)
        denied = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403 Forbidden")
        if "NoSuchBucket" in text:
            raise UsageError(f"{where}: no such bucket") from error
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or any(
            word in text for word in denied
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
