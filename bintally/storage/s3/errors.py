"""What S3 says when it does not do what it was asked, and what to do then."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from bintally.errors import CommandError, UsageError, WorkError
from bintally.storage.s3.address import Address, settings_error

__all__ = [
    "NOT_IMPLEMENTED",
    "PUSHED_BACK",
    "Problem",
    "concerns_one_object",
    "explain",
    "is_final",
    "problem_of",
]

NOT_IMPLEMENTED = 501
PUSHED_BACK = (429, 503)
PASSING = (408, 409, *PUSHED_BACK)
"""Statuses below 500 after which the same request may succeed, and those that ask for less."""
PASSING_CODES = ("RequestTimeout", "OperationAborted")

CLOCK = "this machine's clock is wrong, so S3 refuses what it signs; set the clock (NTP)"
OVER = "the AWS login has expired; log in again (`aws sso login`, say), or renew AWS_SESSION_TOKEN"
NO_LOGIN = {
    "RequestTimeTooSkewed": CLOCK,
    "RequestExpired": CLOCK,
    "ExpiredToken": OVER,
    "ExpiredTokenException": OVER,
    "TokenRefreshRequired": OVER,
    "InvalidToken": "S3 does not know the session token; is AWS_SESSION_TOKEN of this login?",
    "InvalidAccessKeyId": "S3 does not know the access key; is AWS_ACCESS_KEY_ID right?",
    "SignatureDoesNotMatch": "the secret key is another key's; is AWS_SECRET_ACCESS_KEY right?",
}
"""Codes of a login that does not work anywhere, and what to do."""
ELSEWHERE = ("PermanentRedirect", "AuthorizationHeaderMalformed", "TemporaryRedirect")


class Problem(NamedTuple):
    """An error as S3 tells it."""

    status: int | None
    """Of HTTP; None where no answer came."""
    code: str
    message: str


def problem_of(error: Exception) -> Problem:
    """What S3 says in an error of obstore's or of boto3's."""
    response = getattr(error, "response", None)
    if response is not None:
        answer = response.get("Error", {})
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return Problem(status, answer.get("Code", ""), answer.get("Message", ""))
    text = str(error)
    if login := re.search(r"credential provider: (\w+): (.*)", text):
        passing = re.search("Connect|Timeout|HTTPClient", login[1])
        return Problem(None if passing else 401, login[1], login[2])
    if "redirect without LOCATION" in text:
        return Problem(301, "", "")
    status = re.search(r"status code: (\d+)", text)
    code = re.search(r"<Code>([\w.]+)", text)
    message = re.search(r"<Message>([^<]*)", text)
    return Problem(
        int(status[1]) if status else None, code[1] if code else "", message[1] if message else ""
    )


def is_final(problem: Problem) -> bool:
    """Whether the same request will fail again."""
    status, code, _ = problem
    if status is None or status in PASSING or code in PASSING_CODES:
        return code == "NoSuchBucket"
    return status < 500 or status == NOT_IMPLEMENTED


def concerns_one_object(problem: Problem) -> bool:
    """Whether an object is kept from us that others are not: it is archived, say, or this login may
    not read it."""
    status, code, _ = problem
    return (status == 403 and code not in NO_LOGIN) or code.startswith("KMS.")


def explain(error: Exception, where: str, address: Address, anonymous: bool) -> CommandError:
    """An error of obstore or boto3, which is a page of debug output, as a line that says what to
    do."""
    problem = problem_of(error)
    status, code, message = problem
    answer = f"{code}: {message}" if code and message else code or f"status {status}"
    if code == "NoSuchBucket":
        return UsageError(f"{where}: no such bucket")
    if code in NO_LOGIN:
        return UsageError(f"{where}: {NO_LOGIN[code]} ({code})")
    if "credential provider:" in str(error):
        return settings_error(where, code, message)
    if status in (301, 307) or code in ELSEWHERE:
        return UsageError(
            f"{where}: {address.url} does not serve this bucket in region {address.region} "
            f"({answer}); set AWS_DEFAULT_REGION, or the endpoint, to the bucket's"
        )
    if status in (401, 403):
        remedy = (
            "this bucket is not public; call without --anonymous"
            if anonymous
            else "check the AWS credentials, or pass --anonymous for a public bucket"
        )
        reason = "access denied" if code in ("", "AccessDenied") else f"access denied ({answer})"
        return UsageError(f"{where}: {reason}; {remedy}")
    if status is not None:
        return WorkError(f"{where}: S3 answers {status} ({answer})")
    if "error sending request" in str(error):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        remedy = f"is AWS_ENDPOINT_URL={endpoint} right?" if endpoint else "is there a network?"
        if not endpoint and ".amazonaws.com" not in address.url:
            remedy = f"is the endpoint {address.url} right?"
        return WorkError(f"{where}: S3 does not answer; {remedy}")
    return WorkError(f"{where}: {str(error).splitlines()[0]}")
