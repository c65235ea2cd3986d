"""Folders and S3 behave alike, and say what is wrong in one line."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bintally.errors import UsageError, WorkError
from bintally.storage.folder import write_atomically
from bintally.storage.opening import open_place
from bintally.storage.place import TEMPORARY_SUFFIX, Entry, ObjectChanged, Place


@pytest.fixture(params=["folder", "S3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return open_place(tmp_path / "place")
    return open_place(f"{request.getfixturevalue('s3')}/some/prefix")


def test_objects_are_written_listed_read_and_deleted(place: Place) -> None:
    objects = {"a.txt": b"a", "deep/er/b é%.bin": b"", "deep/c": bytes(6_000_000)}
    for path, data in objects.items():
        place.put(path, data)
    assert {e.path: e.size_bytes for e in place.entries()} == {
        k: len(v) for k, v in objects.items()
    }
    assert {e.path for e in place.entries("deep")} == {"deep/er/b é%.bin", "deep/c"}
    assert {path: place.get(path) for path in objects} == objects
    place.put("a.txt", b"other")
    assert place.get("a.txt") == b"other"
    place.delete("a.txt")
    place.delete("a.txt")
    with pytest.raises(FileNotFoundError):
        place.get("a.txt")
    place.check()


def test_nothing_is_listed_where_nothing_is(place: Place) -> None:
    assert list(place.entries("no/such/folder")) == []


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "gs://bucket/x", "http://host/x"])
def test_what_is_no_place_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError):
        open_place(url)


def test_a_missing_bucket_is_a_usage_error(s3: str) -> None:
    with pytest.raises(UsageError, match=r"^s3://no-such-bucket-here/x: no such bucket$"):
        open_place("s3://no-such-bucket-here/x").check()


def test_missing_credentials_are_a_usage_error(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(UsageError, match="no AWS credentials found"):
        open_place(s3).check()
    open_place(s3, anonymous=True).check()


def test_a_server_that_does_not_answer_is_named(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(WorkError, match=r"is AWS_ENDPOINT_URL=http://127\.0\.0\.1:9 right"):
        open_place(s3).check()


@pytest.fixture
def forbidding_server() -> Iterator[str]:
    """A server that answers every request as S3 answers one without permission."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("anonymous", [False, True])
def test_no_permission_is_a_usage_error(
    anonymous: bool, s3: str, forbidding_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", forbidding_server)
    place = open_place("s3://private", anonymous=anonymous)
    for attempt in (place.check, lambda: list(place.entries()), lambda: place.get("x")):
        with pytest.raises(UsageError, match=r"s3://private.*: access denied.*--anonymous"):
            attempt()


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/x").touch()
    with pytest.raises(WorkError, match="taken: cannot be written"):
        write_atomically(tmp_path / "taken", b"data")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken"]


def test_a_file_left_aside_by_a_killed_writer_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / f"a.tar.123{TEMPORARY_SUFFIX}").write_bytes(b"half")
    assert list(open_place(tmp_path).entries()) == []


@pytest.mark.slow
def test_a_long_listing_is_whole_whatever_ranges_it_is_read_in(s3: str) -> None:
    place = open_place(f"{s3}/deep/prefix")
    ids = [f"{i:05d}" for i in range(1, 400)] + [str(i) for i in range(1, 999, 2)]
    ids += [str(i) for i in range(99_900, 100_100)] + ["00", "10", "99", "zebra", "10~", "9x"]
    paths = {f"bin-images/{id_}.jpg" for id_ in ids} | {"bin-images/10", "other/1.jpg"}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda path: place.put(path, path.encode()), paths))
    listed = [entry.path for entry in place.entries("bin-images")]
    assert len(listed) > 1000, "more than an answer of S3 can hold"
    assert len(listed) == len(set(listed))
    assert set(listed) == paths - {"other/1.jpg"}
    assert {entry.path for entry in place.entries()} == paths
    for entry in list(place.entries("bin-images"))[::100]:
        assert place.fetch(entry) == entry.path.encode()


def test_of_an_object_without_a_version_the_size_is_compared(place: Place) -> None:
    """As in a list that was made elsewhere."""
    place.put("a", b"data")
    assert place.fetch(Entry("a", 4, "")) == b"data"
    with pytest.raises(ObjectChanged):
        place.fetch(Entry("a", 5, ""))


def test_an_object_that_is_not_as_it_was_listed_is_not_taken(place: Place) -> None:
    place.put("a", b"before")
    (listed,) = place.entries()
    place.put("a", b"after it")
    with pytest.raises(ObjectChanged):
        place.fetch(listed)
