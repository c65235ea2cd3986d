"""Counts the items in photos from Python.

python examples/count_photo.py best.pt photo.jpg …
"""

import sys
from pathlib import Path

import bintally

checkpoint, *photos = sys.argv[1:]
counter = bintally.Counter(checkpoint)
answers = counter.count([Path(photo).read_bytes() for photo in photos])
for photo, answer in zip(photos, answers, strict=True):
    if answer.error is None:
        print(f"{photo}: {answer.count} items ({answer.confidence:.0%})")
    else:
        print(f"{photo}: {answer.error}")
