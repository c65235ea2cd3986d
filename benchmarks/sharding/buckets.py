"""The buckets that the sharding benchmark's makers read, and what each needs to know of them."""

from __future__ import annotations

import contextlib
import csv
from pathlib import Path

from benchmarks.sharding.contestants import FEW, PHOTOS, Workload
from bintally.terminal.progress import say

__all__ = ["NUM_FEW", "prepare", "render"]

NUM_FEW = 8
"""Photos of the small bucket, whose job is all start and end."""


def render(root: Path, num_images: int, num_rendered: int) -> None:
    """Two buckets of good photos: the faults of a rendered one would end a simple loop."""
    from bintally.dataset.photo import BadPhoto, check_photo
    from bintally.storage.opening import open_place
    from sharding.source.abid.bucket import IMAGES, METADATA
    from sharding.source.abid.metadata import BadMetadata, parse_metadata
    from synthetic.synthesize import synthesize

    say(f"rendering {num_rendered:,} photos")
    rendered = root.parent / "rendered"
    synthesize(open_place(rendered), images=num_rendered, seed=0)
    good = []
    for id_ in sorted({path.stem for path in rendered.glob("*/*")}):
        photo, metadata = rendered / IMAGES / f"{id_}.jpg", rendered / METADATA / f"{id_}.json"
        with contextlib.suppress(FileNotFoundError, BadMetadata, BadPhoto):
            parse_metadata(metadata.read_bytes())
            check_photo(photo.read_bytes())
            good.append((photo, metadata))
    for bucket, number in ((PHOTOS, num_images), (FEW, NUM_FEW)):
        for name in (IMAGES, METADATA):
            (root / bucket / name).mkdir(parents=True)
        for i in range(number):
            for path in good[i % len(good)]:
                name = path.parent.name
                (root / bucket / name / f"{i + 1:06d}{path.suffix}").hardlink_to(path)


def prepare(root: Path, scratch: Path, endpoint: str, num_cores: int) -> Workload:
    (scratch / "runs").mkdir()
    num_photos, num_bytes, urls = {}, {}, {}
    for bucket in (PHOTOS, FEW):
        photos = sorted((root / bucket).glob("bin-images/*.jpg"))
        num_photos[bucket] = len(photos)
        num_bytes[bucket] = sum(path.stat().st_size for path in photos)
        urls[bucket] = str(scratch / f"{bucket}.csv")
        with Path(urls[bucket]).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["url", "id"])
            for path in photos:
                url = f"{endpoint}/{bucket}/{path.relative_to(root / bucket).as_posix()}"
                writer.writerow([url, path.stem])
    return Workload(
        endpoint=endpoint,
        num_photos=num_photos,
        num_bytes=num_bytes,
        urls=urls,
        # Two for every core: equal work for all of them.
        shard_samples=-(-num_photos[PHOTOS] // (2 * num_cores)),
        num_cores=num_cores,
        scratch=scratch / "runs",
    )
