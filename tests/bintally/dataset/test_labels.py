"""Labels, as other people write them."""

from __future__ import annotations

import codecs
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bintally.dataset.index import (
    Component,
    IndexedSample,
    format_index,
    parse_index,
    split_name,
)
from bintally.dataset.labels import check_label_rule, photo_component, read_label


@given(st.integers(0, 2**31 - 1))
def test_whole_numbers_are_counts_wherever_they_stand(number: int) -> None:
    text = f" {number}\n".encode()
    assert read_label(text, "cls") == read_label(text, "txt") == number
    assert read_label(codecs.BOM_UTF8 + text, "cls") == number
    for value in (number, str(number)):
        assert read_label(json.dumps({"a": {"b": value}}).encode(), "json:a.b") == number


@pytest.mark.parametrize(
    "text", ["class 207", "-1", "3.0", "٣", "1e3", "4006381333931", "9" * 6000]
)
def test_all_other_text_is_a_name(text: str) -> None:
    assert read_label(f"{text}\n".encode(), "cls") == text


@pytest.mark.parametrize(
    ("data", "rule", "reason"),
    [
        (b" \n", "cls", "is empty"),
        (b"\xff\xfe", "txt", "is no UTF-8 text"),
        (b"a\0b", "cls", "holds a zero byte"),
        (b'{"a": "\\ud83d"}', "json:a", "is no text: it holds a lone surrogate"),
        (b"{", "json:a", "is no JSON"),
        (b"[1]", "json:a", "has no key 'a'"),
        (b'{"a": {"c": 1}}', "json:a.b", "has no key 'a.b'"),
        (b'{"a": null}', "json:a", "has a null for 'a'"),
        (b'{"a": true}', "json:a", "has a bool for 'a'"),
        (b'{"a": 1.5}', "json:a", "has a float for 'a'"),
        (b'{"a": [1]}', "json:a", "has a list for 'a'"),
        (b"[" * 100_000, "json:a", "is no JSON"),
    ],
)
def test_what_is_no_label_says_why(data: bytes, rule: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_label(data, rule)


@given(st.binary(max_size=200), st.sampled_from(["cls", "txt", "json:a", "json:a.b"]))
def test_nothing_else_is_raised_for_any_bytes(data: bytes, rule: str) -> None:
    try:
        label = read_label(data, rule)
    except ValueError:
        return
    assert isinstance(label, int) or label == label.strip() != ""


def test_rules_name_a_place() -> None:
    for rule in ("cls", "txt", "json:a", "json:a.b"):
        check_label_rule(rule)
    for rule in ("", "jpg", "json", "json:", "json:.a", "json:a..b", "CLS"):
        with pytest.raises(ValueError, match="must be"):
            check_label_rule(rule)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.jpg", ("a", "jpg")),
        ("./a.jpg", ("a", "jpg")),
        ("dir.x/a.seg.png", ("dir.x/a", "seg.png")),
        ("a", None),
        (".a.jpg", None),
        ("dir/.a.jpg", None),
        ("dir.jpg/a", None),
        ("a.", None),
    ],
)
def test_a_name_is_a_key_and_an_extension_as_webdataset_has_them(
    name: str, parts: tuple[str, str] | None
) -> None:
    assert split_name(name) == parts


def test_an_index_holds_any_files_of_a_sample_in_any_line() -> None:
    samples = [
        IndexedSample(
            "a", [Component("JPEG", 512, 9, "a.JPEG"), Component("cls", 1536, 1, "a.cls")]
        ),
        IndexedSample("x/é", [Component("jpg", 2560, 9, "./x/é.jpg")]),
    ]
    assert parse_index(format_index(samples)) == samples
    photo = photo_component(samples[0].components)
    assert photo is not None
    assert photo.extension == "JPEG"
