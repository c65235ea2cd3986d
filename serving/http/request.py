"""What a request asks for: pure functions from its bytes to photos, or to a `Refusal`.

Nothing of a request is used as a path, a command, a format or an object of Python: photos are
bytes, ids are text that is only ever sent back.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from bintally.dataset.photo import BadPhoto, read_header
from serving.config import Limits
from serving.http.refusal import Refusal

__all__ = ["Asked", "Item", "parse", "refuse_unfit"]

JPEG_TYPES = ("image/jpeg", "image/jpg", "application/x-image")
JSON, MULTIPART = "application/json", "multipart/form-data"
QUANTITY = "expected_quantity"

MAX_ID = 200
MAX_QUANTITY = 1_000_000


@dataclass(frozen=True)
class Item:
    """A photo of a request."""

    photo: bytes
    """JPEG, not decoded yet; empty if refused."""
    id: str | None = None
    """The sender's name for it."""
    expected_quantity: int | None = None
    refusal: Refusal | None = None
    """Why this photo is not counted, where it is not; the others are."""


@dataclass(frozen=True)
class Asked:
    """What a request asks for."""

    items: Sequence[Item]
    single: bool
    """One photo by itself, which is answered by itself."""


def parse(
    content_type: str, body: bytes, query: str, custom_attributes: str, limits: Limits
) -> Asked:
    """Reads a request's body.

    A quantity to compare one photo with may come in the query or, for SageMaker passes no query
    on, in its `CustomAttributes`, both as `expected_quantity=3`. Raises `Refusal` (400, 413, 415)
    for a body that is not what its type says.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in JPEG_TYPES:
        quantity = _quantity_in(query, "the query")
        if quantity is None:
            quantity = _quantity_in(custom_attributes, "the custom attributes")
        return Asked([_item(body, None, quantity, limits)], single=True)
    if kind == JSON:
        return _parse_json(body, limits)
    if kind == MULTIPART:
        return _parse_multipart(content_type, body, limits)
    raise Refusal(
        415,
        f"Content-Type {content_type[:100]!r}: send one of "
        f"{', '.join((*JPEG_TYPES[:1], JPEG_TYPES[2], JSON, MULTIPART))}",
    )


def refuse_unfit(photo: bytes, limits: Limits) -> None:
    """Raises `Refusal` for a photo that is refused by its header, before it costs anything."""
    if not photo:
        raise Refusal(400, "the photo has zero bytes")
    if not photo.startswith(b"\xff\xd8"):
        raise Refusal(415, "the photo is not a JPEG")
    try:
        header = read_header(photo)
    except BadPhoto as error:
        raise Refusal(400, f"the {error}") from error
    if header.width * header.height > limits.photo_pixels:
        raise Refusal(
            413,
            f"the photo has {header.width}x{header.height} pixels, more than "
            f"{limits.photo_pixels:,}",
        )


def _item(photo: bytes, label: str | None, quantity: int | None, limits: Limits) -> Item:
    try:
        refuse_unfit(photo, limits)
    except Refusal as refusal:
        return Item(b"", label, quantity, refusal)
    return Item(photo, label, quantity)


def _parse_json(body: bytes, limits: Limits) -> Asked:
    value = _load_json(body, limits)
    if not isinstance(value, dict):
        raise Refusal(400, 'the JSON is not an object: send {"image": …} or {"instances": […]}')
    if "instances" not in value:
        return Asked([_json_item(value, limits)], single=True)
    instances = value["instances"]
    if not isinstance(instances, list) or not instances:
        raise Refusal(400, "instances is not a list of photos")
    _check_number(len(instances), limits)
    items = []
    for instance in instances:
        try:
            items.append(_json_item(instance, limits))
        except Refusal as refusal:
            items.append(Item(b"", refusal=refusal))
    return Asked(items, single=False)


def _load_json(body: bytes, limits: Limits) -> Any:
    # Base64 has none of these signs, so what holds many of them is no batch of photos. Python's
    # parser would make an object of each, fifty times as large, and recurse into brackets.
    most = 64 + 16 * limits.photos
    if sum(body.count(sign) for sign in (b",", b"[", b"{")) > most:
        raise Refusal(400, f"the JSON has more values than {limits.photos} photos need")
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON: {str(error)[:200]}") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _json_item(value: Any, limits: Limits) -> Item:
    if not isinstance(value, dict) or not isinstance(value.get("image"), str):
        raise Refusal(400, 'a photo is an object with its JPEG in Base64: {"image": "…"}')
    unknown = value.keys() - {"image", "id", QUANTITY}
    if unknown:
        raise Refusal(400, f"{sorted(unknown)[0][:100]!r} is none of image, id, {QUANTITY}")
    label = value.get("id")
    if label is not None and not (isinstance(label, str) and len(label) <= MAX_ID):
        raise Refusal(400, f"id is not a text of at most {MAX_ID} signs")
    quantity = value.get(QUANTITY)
    if quantity is not None and not (
        isinstance(quantity, int)
        and not isinstance(quantity, bool)
        and 0 <= quantity <= MAX_QUANTITY
    ):
        raise Refusal(400, f"{QUANTITY} is not a whole number from 0 to {MAX_QUANTITY:,}")
    try:
        photo = base64.b64decode(value["image"], validate=True)
    except (binascii.Error, ValueError) as error:
        return Item(b"", label, quantity, Refusal(400, f"the image is not Base64: {error}"))
    return _item(photo, label, quantity, limits)


def _parse_multipart(content_type: str, body: bytes, limits: Limits) -> Asked:
    """Files are photos, whatever their fields are called. Fields `expected_quantity` belong to the
    photos in order; an only one is every photo's."""
    photos: list[tuple[str | None, bytes]] = []
    quantities: list[int | None] = []
    for headers, content in _parts(content_type, body, limits):
        disposition = headers.get("content-disposition", "")
        name = _parameter(disposition, "name")
        filename = _parameter(disposition, "filename")
        if name is None:
            raise Refusal(400, "a part of the form has no name")
        if name == QUANTITY and filename is None:
            quantities.append(_quantity(content.decode("latin-1"), "the form"))
        elif filename is not None or headers.get("content-type", "").lower() in JPEG_TYPES:
            photos.append((filename[:MAX_ID] if filename else None, content))
        else:
            raise Refusal(400, f"{name[:100]!r} is neither a file nor {QUANTITY}")
    if not photos:
        raise Refusal(400, "the form has no file")
    _check_number(len(photos), limits)
    if len(quantities) <= 1:
        quantities = (quantities or [None]) * len(photos)
    if len(quantities) != len(photos):
        raise Refusal(
            400, f"the form has {len(photos)} files and {len(quantities)} fields {QUANTITY}"
        )
    items = [
        _item(photo, label, quantity, limits)
        for (label, photo), quantity in zip(photos, quantities, strict=True)
    ]
    return Asked(items, single=False)


def _parts(content_type: str, body: bytes, limits: Limits) -> list[tuple[dict[str, str], bytes]]:
    """The parts of a form (RFC 7578): headers by lower-case name, and content."""
    boundary = _parameter(content_type, "boundary")
    if not boundary or not re.fullmatch(r"[\x21-\x7e ]{1,70}", boundary):
        raise Refusal(400, "the form's Content-Type has no boundary that may be one")
    delimiter = b"\r\n--" + boundary.encode("ascii")
    most = 2 * limits.photos + 2
    # The first delimiter begins the body, so that its line break is the one we add.
    preamble, *pieces = (b"\r\n" + body).split(delimiter, most)
    if preamble or len(pieces) < 2:
        raise Refusal(400, "the form does not begin with its boundary, or has no part")
    if not pieces[-1].startswith(b"--"):
        reason = "more parts than its photos may have" if len(pieces) == most else "no end"
        raise Refusal(400, f"the form has {reason}")
    parts = []
    for piece in pieces[:-1]:
        head, found, content = piece.partition(b"\r\n\r\n")
        if not found or not head.startswith(b"\r\n") or len(head) > MAX_PART_HEAD:
            raise Refusal(400, "a part of the form has no headers")
        headers = {}
        for line in head[2:].decode("utf-8", "replace").split("\r\n"):
            name, colon, text = line.partition(":")
            if not colon:
                raise Refusal(400, "a part of the form has a header that is none")
            headers[name.strip().lower()] = text.strip()
        parts.append((headers, content))
    return parts


MAX_PART_HEAD = 4096


def _parameter(header: str, name: str) -> str | None:
    """A parameter of a header: `form-data; name="photo"`."""
    found = re.search(rf';\s*{name}=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))', header, re.IGNORECASE)
    if found is None:
        return None
    quoted, plain = found.groups()
    return plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)


def _quantity_in(text: str, where: str) -> int | None:
    try:
        values = parse_qs(text, keep_blank_values=True, max_num_fields=20).get(QUANTITY, [])
    except ValueError as error:
        raise Refusal(400, f"{where} cannot be read: {error}") from error
    if len(values) > 1:
        raise Refusal(400, f"{where} has {len(values)} times {QUANTITY}")
    return _quantity(values[0], where) if values else None


def _quantity(text: str, where: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,7}", text) or int(text) > MAX_QUANTITY:
        raise Refusal(
            400, f"{QUANTITY} in {where} is not a whole number from 0 to {MAX_QUANTITY:,}"
        )
    return int(text)


def _check_number(photos: int, limits: Limits) -> None:
    if photos > limits.photos:
        raise Refusal(413, f"{photos:,} photos in a request, more than {limits.photos:,}")
