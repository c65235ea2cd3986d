"""Whatever a photo is, it is counted or refused by name, and takes no other with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from bintally.counting.counter import Counter
from tests.mutations import mutated_photos
from tests.serving.conftest import Client, Server
from tests.serving.test_server import as_batch

BATCH = 8


@pytest.fixture(scope="module")
def counter(checkpoint: Path) -> Counter:
    return Counter(checkpoint, device="cpu", engine="cpu", precision="fp32", batch_size=BATCH)


def test_of_a_batch_every_photo_is_decoded_or_named_and_the_good_ones_are_as_ever(
    counter: Counter, photos: list[bytes]
) -> None:
    (good, _) = counter.decode(photos[:2])
    assert good is not None
    odd = list(mutated_photos(photos, 200, seed=3))
    decoded = 0
    for at in range(0, len(odd), BATCH - 2):
        batch = [photos[0], *odd[at : at + BATCH - 2], photos[1]]
        images, reasons = counter.decode(batch)
        assert images is not None
        assert len(reasons) == len(batch)
        assert len(images) == reasons.count(None)
        assert torch.equal(images[[0, -1]], good)
        assert all(reason.startswith("the photo ") for reason in reasons if reason is not None)
        decoded += len(images) - 2
    # Of both there are plenty, or the mutations are none.
    assert 20 < decoded < 180


class Surprised:
    """An engine to which some photos, or all, are a surprise."""

    def __init__(self, engine: Any, surprises: list[bytes] | None) -> None:
        self._engine, self._surprises = engine, surprises

    def run(self, batches: Any) -> Iterator[torch.Tensor]:
        for photos, draws in batches:
            if self._surprises is None or any(p.tobytes() in self._surprises for p in photos):
                raise KeyError(6)
            yield from self._engine.run([(photos, draws)])


def test_what_a_decoder_raises_is_the_fault_of_the_photo_that_it_raises_it_for(
    counter: Counter, photos: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, _ = counter.decode([photos[0], photos[2]])
    monkeypatch.setattr(counter, "_engine", Surprised(counter._engine, [photos[1]]))
    images, reasons = counter.decode(photos[:3])
    assert images is not None
    assert wanted is not None
    assert torch.equal(images, wanted)
    assert [reason is None for reason in reasons] == [True, False, True]
    assert counter.decode([photos[1]])[0] is None


def test_a_decoder_that_takes_no_photo_at_all_is_no_photos_fault(
    counter: Counter, photos: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counter, "_engine", Surprised(counter._engine, None))
    with pytest.raises(KeyError):
        counter.decode(photos[:3])


SAMPLINGS = [
    [(1, 4), (1, 1), (1, 1)],
    [(4, 1), (1, 1), (1, 1)],
    [(4, 2), (1, 1), (1, 1)],
    [(1, 1), (2, 2), (1, 1)],
    [(3, 1), (1, 1), (1, 1)],
    [(1, 1), (1, 1)],
    [(2, 2), (1, 1), (1, 1), (2, 2)],
]


@pytest.mark.slow
def test_a_rare_sampling_is_answered_and_leaves_its_batch_alone(
    server: Client, photos: list[bytes]
) -> None:
    alone = pytest.approx(server.post(photos[0]).json["probabilities"], abs=1e-6)
    for sampling in SAMPLINGS:
        odd = flat_photo(sampling)
        single = server.post(odd)
        assert single.status in (200, 400), single.body
        reply = server.post(as_batch([odd, photos[0], odd]), "application/json")
        assert reply.status == 200
        first, good, last = reply.json["predictions"]
        assert good["probabilities"] == alone
        for one in (first, last):
            assert ("error" in one) == (single.status == 400)
    assert server.post(flat_photo(SAMPLINGS[0])).status == 200


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [11, 12])
def test_ten_thousand_mutated_photos_are_answered(
    one_machine: Server, photos: list[bytes], seed: int
) -> None:
    server = one_machine
    odd = list(mutated_photos(photos, 5_000, seed))
    with ThreadPoolExecutor(4) as pool:
        single = list(pool.map(server.post, odd))
        batches = [as_batch([photos[0], *odd[at : at + 7]]) for at in range(0, len(odd), 7)]
        batched = list(pool.map(lambda body: server.post(body, "application/json"), batches))
    assert {reply.status for reply in single} <= {200, 400, 413, 415}
    assert all(reply.reason for reply in single if reply.status != 200)
    assert {reply.status for reply in batched} == {200}
    alone = pytest.approx(server.post(photos[0]).json["probabilities"], abs=1e-6)
    answers = [one for reply in batched for one in reply.json["predictions"][1:]]
    assert all(reply.json["predictions"][0]["probabilities"] == alone for reply in batched)
    for reply, one in zip(single, answers, strict=True):
        assert one.get("error", {"status": 200})["status"] == reply.status


def flat_photo(sampling: Sequence[tuple[int, int]]) -> bytes:
    """A whole photo of one grey tone, 64×64, whose components have these samplings."""
    h_max, v_max = max(h for h, _ in sampling), max(v for _, v in sampling)
    units = -(-64 // (8 * h_max)) * -(-64 // (8 * v_max))
    # One code in each table, of a bit: no difference of DC, and the end of a block.
    bits = "00" * units * sum(h * v for h, v in sampling)
    bits += "1" * (-len(bits) % 8)
    table = bytes([1] + [0] * 15) + b"\0"
    number = bytes([len(sampling)])
    parts = [bytes((i, h << 4 | v, 0)) for i, (h, v) in enumerate(sampling, 1)]
    scans = b"".join(bytes((i, 0)) for i in range(1, len(sampling) + 1))

    def segment(marker: int, content: bytes) -> bytes:
        return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2) + content

    return b"".join(
        (
            b"\xff\xd8",
            segment(0xDB, b"\0" + bytes([1] * 64)),
            segment(0xC0, b"\x08\x00\x40\x00\x40" + number + b"".join(parts)),
            segment(0xC4, b"\x00" + table),
            segment(0xC4, b"\x10" + table),
            segment(0xDA, number + scans + b"\0\x3f\0"),
            bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)),
            b"\xff\xd9",
        )
    )
