"""Where the files of other people's tars lie, whatever wrote them; and that nothing goes unsaid."""

from __future__ import annotations

import io
import random
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.adoption.foreign_tar import BadTar, TarSample, walk_tar
from tests.foreign_tars import tar_of

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def walk(data: bytes) -> list[TarSample]:
    return [*walk_tar(io.BytesIO(data))]


def read(data: bytes, found: TarSample) -> dict[str, bytes]:
    return {c.extension: data[c.offset : c.offset + c.size] for c in found.components}


keys = st.lists(
    st.text("abc0123456789_-é", min_size=1, max_size=12), min_size=1, max_size=8, unique=True
)
contents = st.dictionaries(
    st.sampled_from(["jpg", "cls", "json", "seg.png", "JPEG", "txt"]),
    st.binary(max_size=2000),
    min_size=1,
).filter(lambda files: len({name.lower() for name in files}) == len(files))


@given(keys, st.data(), st.sampled_from(FORMATS), st.sampled_from(["", "a/", "./", "x.y/z/"]))
def test_every_file_is_found_where_it_lies(
    names: list[str], data: st.DataObject, how: int, folder: str
) -> None:
    wanted = [(f"{folder}{name}", data.draw(contents)) for name in names]
    files = [(f"{key}.{ext}", body) for key, parts in wanted for ext, body in parts.items()]
    tar = tar_of(files, how)
    found = walk(tar)
    assert [(s.key, read(tar, s), s.complaint) for s in found] == [
        (key.removeprefix("./"), parts, None) for key, parts in wanted
    ]


@pytest.mark.parametrize("how", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_as_their_format_has_them(how: int) -> None:
    key = "/".join(["folder" * 10] * 4) + "/sample"
    tar = tar_of({f"{key}.jpg": b"photo", f"{key}.cls": b"3"}, how)
    (found,) = walk(tar)
    assert (found.key, read(tar, found)) == (key, {"jpg": b"photo", "cls": b"3"})


def test_links_and_sparse_files_are_no_sample_of_an_index() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in (("a.jpg", tarfile.LNKTYPE), ("b.jpg", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "elsewhere.jpg"
            tar.addfile(member)
        fifo = tarfile.TarInfo("c.jpg")
        fifo.type = tarfile.FIFOTYPE
        tar.addfile(fifo)
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    complaints = {found.key: found.complaint for found in walk(buffer.getvalue())}
    assert complaints == {
        "a": "its .jpg is a link",
        "b": "its .jpg is a link",
        "c": "its .jpg is no plain file",
    }


def test_names_that_an_index_cannot_hold_are_complained_of_as_text() -> None:
    names = ["a b.jpg", "c\n.jpg", "d\udcff.jpg", "no\u00a0break.jpg"]
    found = walk(tar_of([(name, b"x") for name in names]))
    assert [f.complaint for f in found] == [
        "its name holds white space, which an index cannot",
        "its name holds white space, which an index cannot",
        "its name is no UTF-8 text",
        "its name holds white space, which an index cannot",
    ]
    for one in found:
        one.key.encode()


@given(st.integers(0, 10**6), st.integers(1, 5))
def test_a_tar_cut_anywhere_is_no_tar(at: int, samples: int) -> None:
    whole = tar_of({f"{n}.jpg": bytes([n + 1]) * 700 for n in range(samples)})
    end = samples * (512 + 1024)
    cut = whole[: at % (end + 512)]
    with pytest.raises(BadTar, match=r"cut short at byte"):
        walk(cut)
    assert len(walk(whole)) == samples


def test_what_follows_the_end_of_a_tar_is_not_lost_in_silence() -> None:
    """As `cat a.tar b.tar > c.tar` makes one, of which programs read the first part only."""
    part = tar_of({"a.jpg": b"x"})
    with pytest.raises(BadTar, match=rf"damaged at byte {len(part):,}: something after"):
        walk(part + part)


def test_damage_anywhere_in_headers_raises_what_is_expected_or_nothing() -> None:
    whole = tar_of({f"{n}.jpg": bytes([n]) * 700 for n in range(4)}, tarfile.PAX_FORMAT)
    draw = random.Random(0)
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            found = walk(bytes(data))
        except BadTar:
            continue
        assert len(found) == 4 or any(f.complaint for f in found)
