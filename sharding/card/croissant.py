"""`croissant.json`: a dataset's metadata in the words of Croissant 1.1 (MLCommons). Pure.

Croissant calls a table of records a record set. There are the splits, the samples (image, label and
split), their metadata, and the catalog.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from bintally.dataset.labels import are_counts
from bintally.dataset.manifest import CATALOG, Dataset

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["croissant"]

CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "annotation": "cr:annotation",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "excludes": "cr:excludes",
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "readLines": "cr:readLines",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sdVersion": "cr:sdVersion",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
    "unArchive": "cr:unArchive",
    "value": "cr:value",
}
"""That of the specification's appendix, with what mlcroissant, its reference implementation, asks
for beyond it: schema.org by https, and `path`, `repeated`, `replace` and `samplingRate`."""

MOST_TARS = 1000
"""Tars that are described one by one. With more they are described by their folders, without sizes
and SHA-256, which `dataset.json` has: mlcroissant would take minutes for the description alone, for
its time grows with the square of their number. (It then reads the catalog, but not the tars.)"""

URLS = {
    "train": "cr:TrainingSplit",
    "validation": "cr:ValidationSplit",
    "test": "cr:TestSplit",
}
"""What Croissant calls the splits."""

COLUMNS = {
    "id": "What the sample's files are called.",
    "count": "The label.",
    "label": "The label.",
    "group": "Photos of one group are in one split.",
    "split": "Null for what is in no shard.",
    "shard": "The tar that holds it.",
    "position": "Which sample of the tar it is, from 0.",
    "bytes": "Size of the source's photo.",
    "width": "Pixels of the source's photo.",
    "height": "Pixels of the source's photo.",
    "skus": "The products in the bin.",
    "status": "sharded, excluded, quarantined, orphan-image or orphan-metadata.",
    "reason": "Why it is in no shard, or what had to be done to its photo.",
    "crc32": "Of the sample in its tar, headers and padding included.",
}
"""What the catalog's columns hold. Others are the user's own."""


def croissant(dataset: Dataset, columns: pa.Schema, title: str, summary: str) -> dict[str, Any]:
    """The metadata as a JSON object; `columns` are the catalog's.

    No record set can join more than two sources in mlcroissant, so the JSON of the samples has a
    record set of its own.
    """
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": title,
        "description": summary,
        "distribution": [
            *_tars(dataset),
            _file_object(CATALOG, "application/x-parquet", dataset.files[CATALOG]),
        ],
        "recordSet": [
            _splits(dataset),
            _samples("count" if are_counts(dataset.classes) else "label"),
            _metadata(),
            _catalog(columns),
        ],
    }


def _tars(dataset: Dataset) -> list[dict[str, Any]]:
    """The tars, and the files of one kind in all of them."""
    shards = dataset.shards
    kind = "application/x-tar"
    if len(shards) <= MOST_TARS:
        tars = [
            _file_object(s.path, kind, s.sha256) | {"contentSize": f"{s.bytes} B"} for s in shards
        ]
    else:
        folders = sorted({f"{shard.path.rpartition('/')[0]}/*.tar" for shard in shards})
        tars = [_file_set("tars", kind, folders)]
    within: Any = [{"@id": tar["@id"]} for tar in tars]
    return [
        *tars,
        _file_set("photos", "image/jpeg", "*.jpg") | {"containedIn": within},
        _file_set("json", "application/json", "*.json") | {"containedIn": within},
    ]


def _splits(dataset: Dataset) -> dict[str, Any]:
    """An enumeration."""
    names = [name for name, split in dataset.splits.items() if split.shards]
    fields = [_field("splits/name", "sc:Text"), _field("splits/url", "sc:URL")]
    data = [{"splits/name": name, "splits/url": URLS[name]} for name in names]
    return _record_set("splits", "The splits.", fields, "splits/name") | {
        "dataType": "cr:Split",
        "data": data,
    }


def _samples(label: str) -> dict[str, Any]:
    """The photos, each with its row of the catalog."""
    photo = {"fileSet": {"@id": "photos"}}
    label_type = "sc:Integer" if label == "count" else "sc:Text"
    fields = [
        _file_id("samples/id", "photos", "jpg") | {"references": {"field": {"@id": "catalog/id"}}},
        _field("samples/image", "sc:ImageObject", photo | {"extract": {"fileProperty": "content"}}),
        _field(
            f"samples/{label}", [label_type, "cr:Label"], {"field": {"@id": f"catalog/{label}"}}
        ),
        _field("samples/split", "sc:Text", {"field": {"@id": "catalog/split"}})
        | {"references": {"field": {"@id": "splits/name"}}},
    ]
    return _record_set("samples", "The photos with their labels.", fields, "samples/id")


def _metadata() -> dict[str, Any]:
    content = {"fileSet": {"@id": "json"}, "extract": {"fileProperty": "content"}}
    fields = [
        _file_id("metadata/id", "json", "json"),
        _field("metadata/json", "sc:Text", content),
    ]
    return _record_set("metadata", "The samples' metadata.", fields, "metadata/id")


def _catalog(columns: pa.Schema) -> dict[str, Any]:
    """The columns that Croissant can name, and has a name for what they hold."""
    fields: dict[str, dict[str, Any]] = {}
    for column in columns:
        data_type, depth = _data_type(column.type)
        if data_type is None or not column.name:
            continue
        # An @id is a part of a URL; two names must not become one.
        name = re.sub(r"[^A-Za-z0-9_-]", "_", column.name)
        while name in fields:
            name += "_"
        source = {"fileObject": {"@id": CATALOG}, "extract": {"column": column.name}}
        field = _field(f"catalog/{name}", data_type, source) | {"name": column.name}
        if column.name in COLUMNS:
            field["description"] = COLUMNS[column.name]
        if depth:
            field |= {"isArray": True, "arrayShape": ",".join(["-1"] * depth)}
        fields[name] = field
    what = "A row for each object of the source, with what became of it."
    return _record_set("catalog", what, [*fields.values()], "catalog/id")


def _data_type(column: pa.DataType) -> tuple[str | None, int]:
    """Croissant's name of a column's type, None where it has none, and how deep in lists it is."""
    import pyarrow.types as t

    depth = 0
    while t.is_list(column) or t.is_large_list(column) or t.is_fixed_size_list(column):
        column, depth = column.value_type, depth + 1
    if t.is_dictionary(column):
        column = column.value_type
    kinds = [
        ("sc:Text", t.is_string(column) or t.is_large_string(column) or t.is_null(column)),
        ("sc:Integer", t.is_integer(column)),
        ("sc:Float", t.is_floating(column) or t.is_decimal(column)),
        ("sc:Boolean", t.is_boolean(column)),
        ("sc:Date", t.is_date(column)),
        ("sc:DateTime", t.is_timestamp(column)),
        ("sc:Time", t.is_time(column)),
    ]
    return next((name for name, fits in kinds if fits), None), depth


def _file_object(path: str, kind: str, sha256: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": path,
        "name": path,
        "contentUrl": path,
        "encodingFormat": kind,
        "sha256": sha256,
    }


def _file_set(id_: str, kind: str, includes: str | list[str]) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": id_,
        "name": id_,
        "encodingFormat": kind,
        "includes": includes,
    }


def _record_set(
    id_: str, description: str, fields: list[dict[str, Any]], key: str
) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": id_,
        "name": id_,
        "description": description,
        "key": {"@id": key},
        "field": fields,
    }


def _field(
    id_: str, data_type: str | list[str], source: dict[str, Any] | None = None
) -> dict[str, Any]:
    field = {"@type": "cr:Field", "@id": id_, "name": id_, "dataType": data_type}
    return field if source is None else field | {"source": source}


def _file_id(id_: str, files: str, extension: str) -> dict[str, Any]:
    """A sample's id: what its file is called, without the extension."""
    source = {
        "fileSet": {"@id": files},
        "extract": {"fileProperty": "filename"},
        "transform": {"regex": rf"^(.+)\.{extension}$"},
    }
    return _field(id_, "sc:Text", source)
