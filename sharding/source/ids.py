"""What the names of a source's objects say: which are photos, and what their samples are called."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from sharding.tar import LONGEST_ID

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "NOT_UTF8",
    "OTHER_IMAGES",
    "PHOTO_NAMES",
    "are_photos",
    "other_images",
    "path_without_extension",
    "repeated",
    "sample_ids",
    "stems",
]

NOT_UTF8 = "its name is not UTF-8"
PHOTO_NAMES = ".jpg, .jpeg, .png or .webp"
EXTENSION = r"(?i)\.(jpe?g|png|webp)$"
OTHER_IMAGES = {
    "avif": "AVIF",
    "bmp": "BMP",
    "gif": "GIF",
    "heic": "HEIC",
    "heif": "HEIF",
    "jxl": "JPEG XL",
    "tif": "TIFF",
    "tiff": "TIFF",
}
"""What looks like a photo, and is of a kind that no shard holds."""


def are_photos(paths: pa.StringArray) -> pa.BooleanArray:
    """Which paths are named as photos are: `.jpg`, `.jpeg`, `.png` or `.webp`, in any capitals."""
    import pyarrow.compute as pc

    return pc.match_substring_regex(paths, r"[^/]" + EXTENSION)


def other_images(paths: pa.StringArray) -> pa.StringArray:
    """Why a path that is named as an image of another kind is no photo; null for all else."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.match_substring_regex(paths, rf"(?i)[^/]\.({'|'.join(OTHER_IMAGES)})$")
    extensions = pc.utf8_lower(pc.replace_substring_regex(paths, r"(?s)^.*\.", ""))
    numbers = pc.index_in(pc.if_else(found, extensions, None), pa.array([*OTHER_IMAGES]))
    reasons = [
        f"named as a {kind}; a photo is a JPEG, PNG or WebP" for kind in OTHER_IMAGES.values()
    ]
    return pa.array(reasons).take(numbers)


def path_without_extension(paths: pa.StringArray) -> pa.StringArray:
    """`a/b/photo` of `a/b/photo.JPG`."""
    import pyarrow.compute as pc

    return pc.replace_substring_regex(paths, EXTENSION, "")


def stems(paths: pa.StringArray) -> pa.StringArray:
    """`photo` of `a/b/photo.JPG`."""
    import pyarrow.compute as pc

    return pc.replace_substring_regex(path_without_extension(paths), r"(?s)^.*/", "")


def repeated(names: pa.StringArray) -> pa.StringArray:
    """Those that occur more than once, each once."""
    import pyarrow.compute as pc

    occurrences = pc.value_counts(names)
    return occurrences.field("values").filter(pc.greater(occurrences.field("counts"), 1))


def sample_ids(paths: pa.StringArray) -> pa.StringArray:
    """The ids of the samples that photos become: names of files in a tar, each once.

    A photo's stem, if it is a flat name and no other photo has it; else one made of its path, such
    as `dog_001-5f2a91c30b4de276` of `dog/001.jpg`. So an id depends on the path, and on whether
    its stem occurs twice, and on nothing else: other photos may be added.
    """
    import pyarrow.compute as pc

    names = stems(paths)
    flat = pc.match_substring_regex(names, FLAT)
    # A stem that ends like an id that is made could be one.
    taken = pc.or_(pc.is_in(names, repeated(names)), pc.match_substring_regex(names, MADE))
    must_be_made = pc.invert(pc.and_not(flat, taken))
    return pc.replace_with_mask(names, must_be_made, _made_ids(paths.filter(must_be_made)))


FLAT = rf"^[!#-&(-\-0-\[\]-~]{{1,{LONGEST_ID}}}$"
"""Printable ASCII without space, dot (WebDataset takes what follows it for the extension), slashes
and quotes."""
DIGITS = 16
"""Of the path's hash: so many that even of a billion paths no two share them."""
MADE = rf"-[0-9a-f]{{{DIGITS}}}$"


def _made_ids(paths: pa.StringArray) -> pa.StringArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    safe = pc.replace_substring_regex(path_without_extension(paths), r"[^A-Za-z0-9_-]+", "_")
    # Of a long path its end tells more.
    readable = pc.utf8_slice_codeunits(safe, -(LONGEST_ID - DIGITS - 1))
    hashes = [pa.array([], pa.string())]
    for start in range(0, len(paths), AT_A_TIME):
        some = paths.slice(start, AT_A_TIME).to_pylist()
        digests = (hashlib.sha256(path.encode()).hexdigest() for path in some)
        hashes.append(pa.array([digest[:DIGITS] for digest in digests], pa.string()))
    return pc.binary_join_element_wise(readable, pa.concat_arrays(hashes), "-")


AT_A_TIME = 65_536
"""Paths as Python's objects."""
