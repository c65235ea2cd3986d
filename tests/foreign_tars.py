"""Tars as others write them: with webdataset, as img2dataset does, and with plain tarfile."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from bintally.loading.loader import Loader
from bintally.storage.opening import open_place
from bintally.storage.place import Place
from sharding.adopt import Adoption, adopt
from sharding.distribute import Processes
from sharding.verify import verify

COLOURS = {"amber": (240, 170, 20), "blue": (20, 60, 220), "class 207": (120, 120, 120)}


def photo(number: int, colour: Sequence[int] = (200, 100, 50)) -> bytes:
    """A JPEG that is no other number's."""
    pixels = np.full((40, 56, 3), colour, np.uint8)
    pixels[:20, :20] = np.random.default_rng(number).integers(0, 255, 3)
    data: bytes = simplejpeg.encode_jpeg(pixels, quality=90)
    return data


def write_with_webdataset(folder: Path, shards: int = 20, each: int = 5) -> None:
    """With `webdataset.ShardWriter`: a `.jpg` and a count in a `.cls` a sample."""
    import webdataset as wds

    folder.mkdir(parents=True, exist_ok=True)
    with wds.ShardWriter(f"{folder}/shard-%06d.tar", maxcount=each, verbose=0) as writer:
        for number in range(shards * each):
            writer.write(
                {"__key__": f"sample{number:06d}", "jpg": photo(number), "cls": number % 4}
            )


def write_as_img2dataset(folder: Path, shards: int = 2, each: int = 8) -> None:
    """As `img2dataset --output_format webdataset` does: NNNNN.tar of NNNNNNNNN.jpg, .json and .txt
    (the caption), and beside it NNNNN.parquet and NNNNN_stats.json."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import webdataset as wds

    folder.mkdir(parents=True, exist_ok=True)
    names = [*COLOURS]
    for shard in range(shards):
        rows = []
        with wds.TarWriter(f"{folder}/{shard:05d}.tar") as writer:
            for number in range(each):
                name = names[(shard + number) % len(names)]
                key = f"{shard:05d}{number:04d}"
                meta = {
                    "caption": f"a photo of {name}",
                    "url": f"https://example.org/{key}.jpg",
                    "key": key,
                    "status": "success",
                    "error_message": None,
                    "label": {"name": name},
                    "width": 56,
                    "height": 40,
                    "exif": "{}",
                }
                rows.append(meta)
                data = photo(shard * each + number, COLOURS[name])
                writer.write({"__key__": key, "jpg": data, "txt": meta["caption"], "json": meta})
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard:05d}.parquet")
        stats = {"count": each, "successes": each, "failed_to_download": 0}
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats))


def tar_of(
    files: Mapping[str, bytes] | Sequence[tuple[str, bytes]], how: int = tarfile.GNU_FORMAT
) -> bytes:
    """A tar of files, by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=how) as tar:
        for name, data in files.items() if isinstance(files, Mapping) else files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def sample(key: str, number: int, label: object = None, extension: str = "jpg") -> dict[str, bytes]:
    """The files of a sample."""
    text = str(number % 3 if label is None else label)
    return {f"{key}.{extension}": photo(number), f"{key}.cls": text.encode()}


def adopted(tars: Path | str, output: Path | str | None = None, label: str = "cls") -> Adoption:
    def place(name: Path | str) -> Place:
        return open_place(name)

    return adopt(
        place(tars),
        None if output is None else place(output),
        label,
        distributor=Processes(1),
    )


def reasons(adoption: Adoption) -> dict[str, Any]:
    """Why samples are put aside, by id."""
    return {row["id"]: row["reason"] for row in adoption.quarantined.to_pylist()}


def loader(place: Path | str, **more: Any) -> Loader:
    settings: dict[str, Any] = {"batch_size": 8, "image_size": 32, "device": "cpu", "engine": "cpu"}
    return Loader(str(place), **settings | more)


def taken(of: Loader) -> list[tuple[list[str], list[int]]]:
    """Ids and labels of an epoch's batches."""
    return [([*batch.ids], batch.labels.tolist()) for batch in of]


def faults(place: Path | str) -> list[str]:
    return verify(open_place(place), decode=True, distributor=Processes(1))[1]
