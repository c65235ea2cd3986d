"""What a request asks for, and what is refused of it."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.config import Limits
from serving.http.refusal import Refusal
from serving.http.request import Asked, parse

LIMITS = Limits(
    photos=4,
    photo_pixels=1_000_000,
    body_bytes=1_000_000,
    held_bytes=10_000_000,
    queue=16,
    receive_s=5,
    answer_s=5,
)


def read(
    body: bytes, content_type: str = "image/jpeg", query: str = "", attributes: str = ""
) -> Asked:
    return parse(content_type, body, query, attributes, LIMITS)


def refused(body: bytes, content_type: str = "image/jpeg", query: str = "") -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(body, content_type, query)
    return caught.value


def form(
    *parts: tuple[str, bytes], boundary: str = "b", end: bytes = b"--\r\n"
) -> tuple[bytes, str]:
    """A form of parts, each a Content-Disposition and its content."""
    body = b"".join(
        b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n"
        % (boundary.encode(), disposition.encode(), content)
        for disposition, content in parts
    )
    return body + b"--" + boundary.encode() + end, f"multipart/form-data; boundary={boundary}"


def as_json(value: Any) -> tuple[bytes, str]:
    return json.dumps(value).encode(), "application/json; charset=utf-8"


@pytest.mark.parametrize("kind", ["image/jpeg", "application/x-image", "IMAGE/JPEG; q=1"])
def test_a_photo_by_itself(photos: list[bytes], kind: str) -> None:
    asked = read(photos[0], kind)
    assert asked.single
    assert [item.photo for item in asked.items] == photos[:1]


def test_a_quantity_comes_in_the_query_or_in_sagemakers_attributes(photos: list[bytes]) -> None:
    both = read(photos[0], query="expected_quantity=3", attributes="expected_quantity=4")
    assert both.items[0].expected_quantity == 3
    (item,) = read(photos[0], attributes="expected_quantity=4").items
    assert item.expected_quantity == 4
    for wrong in ("-1", "3.0", "three", "1e3", "9" * 40, "３"):
        assert refused(photos[0], query=f"expected_quantity={wrong}").status == 400


def test_json_of_one_photo_and_of_several(photos: list[bytes]) -> None:
    one, two = (base64.b64encode(photo).decode() for photo in photos[:2])
    assert read(*as_json({"image": one})).single
    asked = read(
        *as_json(
            {"instances": [{"image": one, "id": "a/../b", "expected_quantity": 2}, {"image": two}]}
        )
    )
    assert [item.photo for item in asked.items] == photos[:2]
    assert (asked.items[0].id, asked.items[0].expected_quantity) == ("a/../b", 2)


def test_a_form_of_photos_with_one_quantity_for_each(photos: list[bytes]) -> None:
    asked = read(
        *form(
            ('name="expected_quantity"', b"2"),
            ('name="photo"; filename="x \\" y.jpg"', photos[0]),
            ('name="expected_quantity"', b""),
            ('name="other"; filename=""', photos[1]),
        )
    )
    assert [item.photo for item in asked.items] == photos[:2]
    assert [item.expected_quantity for item in asked.items] == [2, None]
    assert [item.id for item in asked.items] == ['x " y.jpg', None]


def test_one_quantity_is_that_of_every_photo(photos: list[bytes]) -> None:
    parts = [(f'name="p"; filename="{i}"', photo) for i, photo in enumerate(photos[:3])]
    asked = read(*form(*parts, ('name="expected_quantity"', b"5")))
    assert [item.expected_quantity for item in asked.items] == [5, 5, 5]
    wrong = form(*parts, *[('name="expected_quantity"', b"5")] * 2)
    assert "3 files and 2 fields" in refused(*wrong).reason


def test_a_bad_photo_of_a_batch_is_refused_alone(photos: list[bytes]) -> None:
    good = base64.b64encode(photos[0]).decode()
    bad: list[Any] = [{"image": "AAAA"}, {"image": 3}, {"image": "/9j/"}]
    asked = read(*as_json({"instances": [{"image": good}, *bad]}))
    assert [item.refusal and item.refusal.status for item in asked.items] == [None, 415, 400, 400]


def test_more_than_may_be_is_refused_before_it_is_decoded(photos: list[bytes]) -> None:
    many = refused(*as_json({"instances": [{"image": ""}] * 5}))
    assert (many.status, many.reason) == (413, "5 photos in a request, more than 4")
    assert refused(*form(*[('name="p"; filename="p"', photos[0])] * 5)).status == 413
    # A header that announces 65,500 pixels by 65,500 costs nothing but the header.
    at = photos[0].index(b"\xff\xc0") + 5
    bomb = photos[0][:at] + b"\xff\xdc\xff\xdc" + photos[0][at + 4 :]
    (item,) = read(bomb).items
    assert item.refusal is not None
    assert item.refusal.status == 413
    scans = read(photos[0][:-2] + b"\xff\xda" * 200 + b"\xff\xd9")
    assert scans.items[0].refusal is not None
    assert "scans" in scans.items[0].refusal.reason


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"instances":[' + b"{}," * 100_000 + b"{}]}",
        b'{"instances": NaN}',
        b'{"instances": [' + b"9" * 5000 + b"]}",
        b'{"instances": []}',
        b'{"instances": {"image": ""}}',
        b'{"image": "%%%"}',
        b'{"image": "\\ud800"}',
        b'{"image": "", "path": "/etc/passwd"}',
        b"\xff\xfe\x00",
    ],
)
def test_json_that_is_none_or_asks_for_nothing_is_refused(body: bytes) -> None:
    assert outcome(body, "application/json") == 400


def outcome(body: bytes, content_type: str) -> int:
    """The status that a request of one photo gets, as far as its bytes decide it."""
    try:
        item, *_ = read(body, content_type).items
    except Refusal as refusal:
        return refusal.status
    return item.refusal.status if item.refusal is not None else 200


def test_forms_that_are_none_are_refused(photos: list[bytes]) -> None:
    good, kind = form(('name="p"; filename="p"', photos[0]))
    for body, content_type in [
        (good, "multipart/form-data"),
        (good, "multipart/form-data; boundary="),
        (good, "multipart/form-data; boundary=" + "b" * 71),
        (good, "multipart/form-data; boundary=other"),
        (good[:-4], kind),
        (good[len(b"--b") :], kind),
        (b"", kind),
        (b"--b--\r\n", kind),
        form(("", photos[0])),
        form(('name="p"', b"x")),
        form(('name="expected_quantity"', b"2")),
        form(*[('name="expected_quantity"', b"2")] * 500),
        (b"--b\r\n" + b"x" * 9000 + b"\r\n\r\n\r\n--b--\r\n", kind),
    ]:
        assert refused(body, content_type).status == 400, body[:60]


@pytest.mark.parametrize("kind", ["", "text/html", "image/png", "image/jpegx", "application/x-npy"])
def test_other_types_are_refused(kind: str) -> None:
    assert refused(b"x", kind).status == 415


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["image/jpeg", "application/json", "multipart/form-data; boundary=b"]),
    st.binary(max_size=300) | st.lists(st.sampled_from(
        [b"--b", b"--", b"\r\n", b"\r\n\r\n", b"Content-Disposition: form-data;", b'name="', b'"',
         b"filename=x", b"\xff\xd8", b"\xff\xda", b"{", b"[", b'"instances":', b'"image":', b"}"]
    ), max_size=30).map(b"".join),
)  # fmt: skip
def test_whatever_comes_is_read_or_refused(kind: str, body: bytes) -> None:
    assert outcome(body, kind) in (400, 413, 415)
