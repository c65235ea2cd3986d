"""A tar of ours is read as it was written, and taken for ours only if it is so in every byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bintally.dataset.index import format_index
from sharding.integrity import walk_own_tar
from sharding.tar import TarBuilder, fit_together

names = st.text("abc-_019", min_size=1, max_size=90)
sizes = st.sampled_from([0, 1, 511, 512, 513, 2000])
photos = st.lists(st.tuples(names, sizes), max_size=4, unique_by=lambda one: one[0])


@given(photos, st.data())
def test_a_tar_is_read_as_it_was_written_and_any_other_one_is_refused(
    samples: list[tuple[str, int]], data: st.DataObject
) -> None:
    builder = TarBuilder()
    for id_, size in samples:
        builder.add(id_, [("jpg", b"\xff" * size), ("cls", b"3"), ("json", b"{}")])
    tar, index = b"".join(builder.finish()), format_index(builder.samples)
    assert fit_together(tar, index)
    assert walk_own_tar(tar) == builder.samples
    # All but what is in the files, and what fills up their blocks, has to be as it was written.
    files = [file for sample in builder.samples for file in sample.components]
    ends = [file.offset + file.size + -file.size % 512 for file in files]
    free = {at for file, end in zip(files, ends, strict=True) for at in range(file.offset, end)}
    at = data.draw(st.sampled_from([at for at in range(len(tar)) if at not in free]))
    assert not fit_together(flipped(tar, at, data), index)
    assert not fit_together(tar[:at], index)
    at = data.draw(st.integers(0, len(index) - 1))
    assert not fit_together(tar, flipped(index, at, data))
    assert not fit_together(tar, index[:at])


def flipped(whole: bytes, at: int, data: st.DataObject) -> bytes:
    return whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
