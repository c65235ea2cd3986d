"""An S3 that remembers what it was asked for."""

from __future__ import annotations

from bintally.storage.s3.prefix import S3Prefix


class CountingPlace(S3Prefix):
    """S3 that remembers which tars were asked for."""

    def __init__(self, url: str) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        super().__init__(url, bucket, prefix, anonymous=False)
        self.asked: list[str] = []

    def get(self, path: str) -> bytes:
        if path.endswith(".tar"):
            self.asked.append(path)
        return super().get(path)
