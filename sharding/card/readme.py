"""The dataset card: what a person reads first of a dataset, with the YAML in front that Hugging
Face reads. Pure; the words are in `readme.md.j2`."""

from __future__ import annotations

import re
from collections import Counter
from importlib import resources
from typing import TYPE_CHECKING, Any

from bintally.dataset.labels import are_counts
from bintally.dataset.manifest import Dataset
from sharding.report.reasons import without_details

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["render_readme"]

MOST_CLASSES = 30
MOST_REASONS = 10
"""Rows of a table; the rest is a number."""


def render_readme(dataset: Dataset, catalog: pa.Table, title: str, summary: str) -> str:
    """The card as Markdown: the same for the same. Whatever names and reasons hold, they are text
    in it."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "number": lambda value: f"{value:,}",
        "percent": lambda share: f"{100 * share:.4g}%",
        "text": _escaped,
    }
    template = resources.files("sharding.card").joinpath("readme.md.j2").read_text("utf-8")
    splits = {name: split for name, split in dataset.splits.items() if split.shards}
    first, split = next(iter(splits.items()))
    reasons = _reasons(catalog)
    return environment.from_string(template).render(
        front_matter=_front_matter(dataset),
        title=title,
        summary=summary,
        dataset=dataset,
        counted=are_counts(dataset.classes),
        splits=splits,
        classes=_classes(dataset),
        most_classes=MOST_CLASSES,
        converted=[(why, n) for status, why, n in reasons if status == "sharded"],
        left_out=[row for row in reasons if row[0] != "sharded"],
        most_reasons=MOST_REASONS,
        sizes=_sizes(catalog),
        first=first,
        tar=split.shards[0].path,
        batch_size=min(32, split.samples),
    )


def _front_matter(dataset: Dataset) -> str:
    """What Hugging Face reads: where the splits are, and what a sample's files hold.

    The types are said because Hugging Face guesses them otherwise, of the JSON by the keys of the
    first five samples.
    """
    import yaml

    splits = {name: split for name, split in dataset.splits.items() if split.shards}
    label: Any = "int64"
    if not are_counts(dataset.classes):
        label = {"class_label": {"names": {str(i): c for i, c in enumerate(dataset.classes)}}}
    types = {"jpg": "image", "cls": label, "json": "json", "__key__": "string", "__url__": "string"}
    value = {
        "task_categories": ["image-classification"],
        "size_categories": [_size_category(sum(split.samples for split in splits.values()))],
        "tags": ["webdataset"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"{name}/*.tar"} for name in splits],
            }
        ],
        "dataset_info": {"features": [{"name": n, "dtype": t} for n, t in types.items()]},
    }
    text: str = yaml.safe_dump(value, sort_keys=False)
    return text


def _size_category(samples: int) -> str:
    """How Hugging Face calls so many samples."""
    bounds = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    at = max(0, len(str(samples)) - 3)
    if at == 0:
        return f"n<{bounds[0]}"
    return f"{bounds[at - 1]}<n<{bounds[at]}" if at < len(bounds) else f"n>{bounds[-1]}"


def _classes(dataset: Dataset) -> list[tuple[int | str, list[int]]]:
    """Each class and its samples by split; of very many classes the largest."""
    splits = [split for split in dataset.splits.values() if split.shards]
    rows = [(of, [s.class_counts.get(str(of), 0) for s in splits]) for of in dataset.classes]
    if len(rows) > MOST_CLASSES:
        rows.sort(key=lambda row: -sum(row[1]))
    return rows[:MOST_CLASSES]


def _reasons(catalog: pa.Table) -> list[tuple[str, str, int]]:
    """Status, reason and number of the rows that have a reason, the most frequent first."""
    import pyarrow as pa

    given = catalog.select(["id", "status", "reason"]).drop_null()
    rows = pa.table({name: given[name].cast(pa.string()) for name in given.column_names})
    grouped = rows.group_by(["status", "reason"]).aggregate([("id", "count"), ("id", "min")])
    found: Counter[tuple[str, str]] = Counter()
    for row in grouped.to_pylist():
        status, reason = row["status"], row["reason"]
        if status != "excluded":  # Its numbers are options.
            reason = without_details(reason, row["id_min"])
        found[status, reason] += row["id_count"]
    return [
        (status, reason, number)
        for (status, reason), number in sorted(found.items(), key=lambda f: (-f[1], f[0]))
    ]


def _sizes(catalog: pa.Table) -> list[tuple[str, int, int, int]]:
    """Smallest, median and largest of what the samples' photos measured in the source."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = {"width, pixels": "width", "height, pixels": "height", "file, bytes": "bytes"}
    sharded = pc.equal(catalog["status"].cast(pa.string()), "sharded")
    photos = catalog.select([*names.values()]).filter(sharded)
    rows = []
    for name, column in names.items():
        at = pc.quantile(photos[column], [0, 0.5, 1], interpolation="lower").to_pylist()
        if None not in at:
            rows.append((name, *at))
    return rows


def _escaped(value: object) -> str:
    """Any text as itself in a cell of a table."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*_{}\[\]()<>#&|~$!])", r"\\\1", text)
