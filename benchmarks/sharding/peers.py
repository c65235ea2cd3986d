"""What people write today to make shards from a bucket: the peers of `bintally build`.

A script and not a module: `PYTHON -P sharding_peers.py KIND OUTPUT BUCKET SHARD_SAMPLES CORES URLS`
runs in the peers' own environment, which has none of this project's packages. BUCKET is read from
where the AWS_* variables say; URLS is a CSV of `url,id`, for img2dataset alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

THREADS = 64
"""img2dataset's connections for each process, as its README advises for many small photos."""


def read_bucket(bucket: str) -> Iterator[tuple[str, bytes, bytes]]:
    """Id, photo and JSON of everything in the bucket, one request after the other."""
    s3 = import_module("boto3").client("s3")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="bin-images/")
    for page in pages:
        for item in page.get("Contents", []):
            id_ = Path(item["Key"]).stem
            photo = s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
            metadata = s3.get_object(Bucket=bucket, Key=f"metadata/{id_}.json")["Body"].read()
            yield id_, photo, metadata


def write_webdataset(output: Path, bucket: str, shard_samples: int) -> None:
    """webdataset's own writer."""
    webdataset = import_module("webdataset")
    output.mkdir()
    pattern = str(output / "%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=shard_samples, verbose=0) as sink:
        for id_, photo, metadata in read_bucket(bucket):
            count = json.loads(metadata)["EXPECTED_QUANTITY"]
            sink.write({"__key__": id_, "jpg": photo, "cls": count, "json": metadata})


def write_mds(output: Path, bucket: str) -> None:
    """Mosaic Streaming's writer, with the shard size that it takes by itself."""
    # "bytes" and not "jpeg": the latter would decode each photo and encode it again.
    columns = {"id": "str", "jpg": "bytes", "count": "int", "json": "bytes"}
    with import_module("streaming").MDSWriter(out=str(output), columns=columns) as sink:
        for id_, photo, metadata in read_bucket(bucket):
            count = json.loads(metadata)["EXPECTED_QUANTITY"]
            sink.write({"id": id_, "jpg": photo, "count": count, "json": metadata})


def write_img2dataset(
    output: Path, urls: str, shard_samples: int, cores: int, decode: bool
) -> None:
    """img2dataset, told to keep the photos' size: decoded and encoded again, or as they are."""
    import_module("img2dataset").download(
        url_list=urls,
        input_format="csv",
        url_col="url",
        save_additional_columns=["id"],
        output_folder=str(output),
        output_format="webdataset",
        processes_count=cores,
        thread_count=THREADS,
        number_sample_per_shard=shard_samples,
        resize_mode="no",
        disable_all_reencoding=not decode,
        encode_quality=95,
        extract_exif=False,
        compute_hash=None,
        enable_wandb=False,
    )


def main() -> None:
    kind, output, bucket, shard_samples, cores, urls = sys.argv[1:]
    if kind == "webdataset":
        write_webdataset(Path(output), bucket, int(shard_samples))
    elif kind == "mds":
        write_mds(Path(output), bucket)
    elif kind in ("img2dataset", "img2dataset-decoded"):
        decode = kind == "img2dataset-decoded"
        write_img2dataset(Path(output), urls, int(shard_samples), int(cores), decode)
    else:
        raise SystemExit(f"unknown peer: {kind}")


if __name__ == "__main__":
    main()
