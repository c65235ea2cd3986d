"""Where a bucket answers, and with whose login: what boto3 knows of AWS's settings."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from bintally.errors import UsageError

if TYPE_CHECKING:
    import boto3

__all__ = ["Address", "boto_client", "find_address", "open_session", "settings_error"]

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 10


class Address(NamedTuple):
    """Where the requests go."""

    url: str
    """Of the bucket: its name is in the host or at the end of the path."""
    region: str


def open_session(place: str, anonymous: bool) -> boto3.Session:
    """The session of the environment and the profile; `UsageError` where there is no login."""
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        session = boto3.Session()
        login = anonymous or session.get_credentials()
    except BotoCoreError as error:
        raise settings_error(place, type(error).__name__, str(error)) from error
    if not login:
        raise UsageError(
            f"{place}: no AWS credentials found; set AWS_PROFILE or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or pass --anonymous for a public bucket"
        )
    return session


def boto_client(
    place: str, session: boto3.Session, anonymous: bool, region: str | None = None
) -> Any:
    """boto3's client, which tries a request once. Raises `UsageError` for settings that are
    wrong."""
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"total_max_attempts": 1},
        signature_version=UNSIGNED if anonymous else None,
    )
    region = region or session.region_name or "us-east-1"
    try:
        return session.client("s3", region_name=region, config=config)
    except (BotoCoreError, ValueError) as error:
        raise settings_error(place, type(error).__name__, str(error)) from error


def find_address(place: str, bucket: str, session: boto3.Session, anonymous: bool) -> Address:
    """The address that the settings ask for (region, endpoint, FIPS, dual-stack, …), in the region
    that S3 says the bucket is in.

    Raises `UsageError` for settings or a login that do not work. A server that does not answer is
    not found out here.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto_client(place, session, anonymous)
    asked: list[str] = []
    regions: list[str] = [client.meta.region_name]

    def note_request(request: Any, **_: Any) -> None:
        asked.append(request.url)

    def note_answer(response: Any, **_: Any) -> None:
        if response and (region := response[0].headers.get("x-amz-bucket-region")):
            regions.append(region)

    client.meta.events.register("before-send.s3.HeadBucket", note_request)
    client.meta.events.register("needs-retry.s3.HeadBucket", note_answer)
    try:
        # boto3 follows S3 to another region. A login that may not ask this is told as well.
        client.head_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError, RecursionError) as error:
        # The last is boto3's own: sent elsewhere without a region, it asks again, and again.
        if not asked:  # It was the login that failed: a role that may not be assumed, say.
            raise settings_error(place, type(error).__name__, str(error)) from error
    return Address(asked[-1].rstrip("/"), regions[-1])


def settings_error(place: str, kind: str, reason: str) -> UsageError:
    """What is wrong with the settings or the login, in a line; `kind` is boto3's error."""
    reason = " ".join(reason.split())
    if "Invalid endpoint" in reason:
        reason += "; an endpoint begins with http:// or https://"
    elif "SSO" in kind or "Token" in kind:
        profile = os.environ.get("AWS_PROFILE")
        reason += f"; `aws sso login{f' --profile {profile}' if profile else ''}` renews the login"
    return UsageError(f"{place}: the AWS settings do not work: {reason}")
