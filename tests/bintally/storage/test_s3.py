"""S3 as others run it: found out, or named as what it is."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlencode

import pytest

import bintally.storage.s3.prefix
from bintally.errors import UsageError, WorkError
from bintally.storage.opening import open_place
from bintally.storage.place import Entry, ObjectRefused
from bintally.storage.s3.address import find_address, open_session
from tests.bintally.storage.odd_s3 import Answer, OddS3, error, odd_s3

OBJECTS = {f"place/{folder}/{i}.jpg": b"%d" % i for folder in "ab" for i in range(5)}

Bend = Callable[[Mapping[str, str], Mapping[str, str], Answer], Answer | None]
Serve = Callable[..., OddS3]


def as_it_is(headers: Mapping[str, str], query: Mapping[str, str], good: Answer) -> None:
    """Nothing is bent."""


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts a server, which the environment then names."""
    from contextlib import ExitStack

    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    with ExitStack() as stack:

        def started(bend: Bend = as_it_is, objects: Mapping[str, bytes] = OBJECTS) -> OddS3:
            server = stack.enter_context(odd_s3(objects, bend))
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
            return server

        yield started


def paths_of(place: str = "s3://bucket/place", prefix: str = "") -> list[str]:
    return sorted(entry.path for entry in open_place(place).entries(prefix))


EVERY = sorted(key.removeprefix("place/") for key in OBJECTS)


def test_the_region_of_a_bucket_is_found_out(serve: Serve) -> None:
    def elsewhere(headers: Mapping[str, str], _: object, good: Answer) -> Answer | None:
        if "/eu-west-1/" in headers.get("authorization", ""):
            return None
        return error(301, "PermanentRedirect", x_amz_bucket_region="eu-west-1")

    serve(elsewhere)
    place = open_place("s3://bucket/place")
    place.check()
    assert sorted(entry.path for entry in place.entries()) == EVERY
    assert place.get("a/1.jpg") == b"1"


def test_a_server_that_sends_us_on_without_a_region_is_followed(serve: Serve) -> None:
    """As S3 does for a bucket that has just been made, and as storage behind a gateway does."""
    there = serve()

    def elsewhere(headers: Mapping[str, str], query: Mapping[str, str], _: Answer) -> Answer:
        words = f"?{urlencode(query)}" if query else ""
        return Answer(307, headers={"Location": f"{there.endpoint}/bucket{words}"})

    serve(elsewhere)
    assert paths_of() == EVERY


def test_a_region_that_the_endpoint_does_not_serve_is_named(serve: Serve) -> None:
    serve(lambda *_: error(301, "PermanentRedirect", x_amz_bucket_region="eu-west-1"))
    for anonymous in (False, True):
        with pytest.raises(UsageError, match=r"eu-west-1.*AWS_DEFAULT_REGION"):
            open_place("s3://bucket/place", anonymous=anonymous).check()


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ("", "https://bucket.s3.eu-west-1.amazonaws.com"),
        ("use_fips_endpoint = true", "https://bucket.s3-fips.eu-west-1.amazonaws.com"),
        ("use_dualstack_endpoint = true", "https://bucket.s3.dualstack.eu-west-1.amazonaws.com"),
        (
            "endpoint_url = https://x.vpce-0a.s3.eu-west-1.vpce.amazonaws.com",
            "https://x.vpce-0a.s3.eu-west-1.vpce.amazonaws.com/bucket",
        ),
        (
            "services = ours\n[services ours]\ns3 =\n  endpoint_url = http://minio:9000/s3/",
            "http://minio:9000/s3/bucket",
        ),
        ("s3 =\n  addressing_style = path", "https://s3.eu-west-1.amazonaws.com/bucket"),
    ],
)
def test_the_endpoint_that_a_profile_asks_for_is_asked(
    settings: str, url: str, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(f"[profile work]\nregion = eu-west-1\n{settings}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    # Nobody answers, so what is asked stands by itself; nothing leaves this machine.
    for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    place = "s3://bucket/place"
    found = find_address(place, "bucket", open_session(place, True), True)
    assert found == (url, "eu-west-1")


def test_a_profiles_endpoint_is_read_from_and_named_when_it_is_silent(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    (tmp_path / "config").write_text(f"[default]\nendpoint_url = {server.endpoint}/\n")
    assert paths_of() == EVERY
    (tmp_path / "config").write_text("[default]\nendpoint_url = http://127.0.0.1:9\n")
    with pytest.raises(WorkError, match=r"is the endpoint http://127\.0\.0\.1:9/bucket right\?$"):
        open_place("s3://bucket/place").check()


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "minio", "http://"])
def test_an_endpoint_without_its_scheme_is_a_usage_error(
    endpoint: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(UsageError, match="begins with http:// or https://"):
        open_place("s3://bucket/place").check()


@pytest.mark.parametrize(
    ("listed", "sent"),
    [
        (lambda t: t.strip('"'), lambda t: t),
        (lambda t: t, lambda t: f"W/{t}"),
        (lambda t: f"W/{t}", lambda t: t.strip('"')),
        (lambda t: t, None),
        (lambda t: "", lambda t: t),
        (lambda t: "", None),
    ],
)
def test_an_object_is_the_listed_one_however_its_etag_is_written(
    listed: Callable[[str], str], sent: Callable[[str], str] | None, serve: Serve
) -> None:
    import re

    def written(_: object, query: Mapping[str, str], good: Answer) -> Answer:
        headers = dict(good.headers)
        if "list-type" in query:
            body = re.sub("<ETag>([^<]*)", lambda m: f"<ETag>{listed(m[1])}", good.body.decode())
            return Answer(200, body.encode(), headers)
        if "ETag" in headers:
            tag = headers.pop("ETag")
            headers |= {"ETag": sent(tag)} if sent else {}
        return Answer(good.status, good.body, headers)

    serve(written)
    place = open_place("s3://bucket/place")
    for entry in place.entries("a"):
        assert entry.version
        assert place.fetch(entry) == OBJECTS[f"place/{entry.path}"]


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (403, "RequestTimeTooSkewed", "clock"),
        (400, "ExpiredToken", "login has expired; log in again"),
        (403, "ExpiredToken", "login has expired; log in again"),
        (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        (403, "AccountProblem", "access denied .*AccountProblem"),
    ],
)
def test_a_login_that_does_not_work_is_named_with_its_remedy(
    status: int, code: str, told: str, serve: Serve
) -> None:
    serve(lambda *_: error(status, code))
    place = open_place("s3://bucket/place")
    entry = Entry("a/1.jpg", 1, "x")
    for ask in (place.check, lambda: list(place.entries()), lambda: place.get("a")):
        with pytest.raises(UsageError, match=told):
            ask()
    if code != "AccountProblem":
        # It concerns every object, so none is to be taken for a bad one.
        with pytest.raises(UsageError, match=told):
            place.fetch(entry)


def test_one_object_that_is_kept_from_us_is_told_from_a_login_that_does_not_work(
    serve: Serve,
) -> None:
    def archived(_: object, query: Mapping[str, str], good: Answer) -> Answer | None:
        return error(403, "InvalidObjectState") if good.body == b"3" else None

    serve(archived)
    place = open_place("s3://bucket/place")
    refused = []
    for entry in place.entries():
        try:
            place.fetch(entry)
        except ObjectRefused as reason:
            refused.append(str(reason))
    assert refused == [f"{f}/3.jpg: S3 does not hand it out (InvalidObjectState)" for f in "ab"]


def test_a_profile_that_is_not_logged_in_is_named_with_its_remedy(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve()
    (tmp_path / "config").write_text(
        "[profile sso]\nsso_start_url = http://127.0.0.1:9/start\nsso_region = us-east-1\n"
        "sso_account_id = 000000000000\nsso_role_name = reader\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "sso")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError, match="`aws sso login --profile sso` renews the login"):
        open_place("s3://bucket/place").check()


def test_a_login_that_ends_in_mid_work_is_named(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profile whose program hands out a login for a moment, and then none."""
    serve()
    login = {"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "b", "SessionToken": "c"}
    login["Expiration"] = "2000-01-01T00:00:00Z"
    (tmp_path / "login").write_text(json.dumps(login | {"Expiration": "2999-01-01T00:00:00Z"}))
    (tmp_path / "config").write_text(f"[default]\ncredential_process = cat {tmp_path}/login\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert paths_of() == EVERY
    (tmp_path / "login").unlink()
    with pytest.raises(UsageError, match=r"the AWS settings do not work: .*No such file"):
        open_place("s3://bucket/place").check()


def test_folders_made_in_the_console_are_no_objects(s3: str) -> None:
    import boto3

    client, bucket = boto3.client("s3"), s3.removeprefix("s3://")
    for key in ("place/", "place/a/", "place/a/empty/"):
        client.put_object(Bucket=bucket, Key=key, Body=b"")
    for key in ("place/a/1.jpg", "place/a/nothing.jpg"):
        client.put_object(Bucket=bucket, Key=key, Body=b"" if "nothing" in key else b"1")
    assert paths_of(f"{s3}/place") == ["a/1.jpg", "a/nothing.jpg"]
    assert paths_of(f"{s3}/place", "a") == ["a/1.jpg", "a/nothing.jpg"]


ODD = ["a//1.jpg", "a/./1.jpg", "a/../1.jpg", "a/\t.jpg", "a/\x01.jpg", "a//", "a/ "]


def test_keys_of_any_shape_are_listed_as_they_are(serve: Serve) -> None:
    plain = [f"a/{i}~%2F+&é.jpg" for i in range(1500)]
    serve(objects={f"place/{key}": b"1" for key in [*plain, *ODD]})
    assert paths_of() == sorted([*plain, *ODD])
    place = open_place("s3://bucket/place")
    (odd,) = [entry for entry in place.entries("a") if entry.path == "a/../1.jpg"]
    with pytest.raises(ObjectRefused, match=r"a/\.\./1\.jpg"):
        place.fetch(odd)


@pytest.mark.parametrize("odd", [[], ODD])
def test_a_server_that_cannot_begin_above_a_key_is_listed_whole(
    odd: list[str], serve: Serve
) -> None:
    keys = sorted([*(f"a/{i:05d}" for i in range(2500)), *odd])
    objects = {f"place/{key}": b"1" for key in keys}

    server = serve(objects=objects)
    first: dict[str, Answer] = {}

    def remember(_: object, query: Mapping[str, str], good: Answer) -> Answer | None:
        if "list-type" not in query:
            return None
        if "start-after" in query and "continuation-token" not in query:
            return first.get(query.get("encoding-type", ""), good)
        if "continuation-token" not in query:
            first[query.get("encoding-type", "")] = good
        return None

    server.bend = remember
    assert paths_of() == keys


def test_copies_of_a_place_share_its_connections(serve: Serve) -> None:
    server = serve()
    opened = open_place("s3://bucket/place")
    opened.check()
    sent = pickle.dumps(opened)
    before = server.connections, server.requests
    for _ in range(10):
        assert pickle.loads(sent).get("a/1.jpg") == b"1"
    assert server.requests - before[1] == 10
    # One is enough, but for a request that comes before the connection of the last is free again.
    assert server.connections - before[0] <= 3


def test_a_long_listing_goes_on_as_long_as_it_comes_forward(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every page fails three times; all of them together for much longer than one may."""
    failed: dict[str, int] = {}
    lock = threading.Lock()

    def failing(_: object, query: Mapping[str, str], good: Answer) -> Answer | None:
        key = query.get("start-after", "")
        with lock:
            failed[key] = failed.get(key, 0) + 1
            return error(500, "InternalError") if failed[key] <= 3 else None

    monkeypatch.setattr(bintally.storage.s3.prefix, "GIVE_UP_AFTER_S", 1.0)
    monkeypatch.setattr(bintally.storage.s3.prefix, "LISTERS", 1)
    keys = [f"a/{i:05d}" for i in range(6500)]
    serve(failing, objects={f"place/{key}": b"1" for key in keys})
    assert paths_of() == keys
