"""What decides the bytes of a dataset, beside its source."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bintally.dataset.photo import Resize
from bintally.errors import UsageError

__all__ = ["COLUMN", "Options"]

COLUMN = "column:"
"""Begins the name of a labels' column that says which photos belong together."""


@dataclass(frozen=True)
class Options:
    """What decides the bytes of a dataset, beside its source."""

    max_count: int = 5
    """Bins with more items are left out."""
    min_count: int = 0
    """Bins with fewer items are left out. The classes are this count to the largest."""
    fraction: float | None = None
    """Take this share of the photos, in whole neighbour groups and every class alike."""
    limit: int | None = None
    """Take this many photos, likewise."""
    ids: Path | None = None
    """Take the photos of this list: one id a line, or Udacity's file_list.json."""
    split: tuple[float, float, float] = (0.6, 0.2, 0.2)
    """Shares of train, validation and test."""
    group: str = "neighbours"
    """What is never divided between splits: neighbours, photos that may show the same bin (by their
    ids and products; or by a column `group` of --labels), column:NAME, those that are alike in that
    column of --labels, or none."""
    shard_samples: int = 1000
    """Samples in a shard; the last one of a split holds the rest."""
    resize: str = ""
    """Store photos smaller: 256 for the short side, 224x224 for that very size, up to 4096 pixels a
    side. Encoded again at JPEG quality 95; as they are if not given."""
    seed: int = 0

    def check(self) -> None:
        """Raises `UsageError` for a value that makes no sense."""
        if not 0 <= self.min_count <= self.max_count:
            raise UsageError(
                f"--min-count {self.min_count} --max-count {self.max_count}: must be 0 or more, "
                "and the former not above the latter"
            )
        if min(self.split) < 0 or abs(math.fsum(self.split) - 1) > 1e-6:
            shares = " ".join(map(str, self.split))
            raise UsageError(
                f"--split {shares}: the three shares must be 0 or more and add up to 1"
            )
        if self.shard_samples < 1:
            raise UsageError(f"--shard-samples {self.shard_samples}: must be at least 1")
        if sum(value is not None for value in (self.fraction, self.limit, self.ids)) > 1:
            raise UsageError("only one of --fraction, --limit and --ids may be given")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise UsageError(f"--fraction {self.fraction}: must be above 0 and at most 1")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit}: must be at least 1")
        if self.group not in ("neighbours", "none") and not self.group_column:
            raise UsageError(f"--group {self.group}: must be neighbours, none or column:NAME")
        Resize.parse(self.resize)

    @property
    def group_column(self) -> str:
        """The column of --group column:NAME, else an empty text."""
        return self.group.removeprefix(COLUMN) if self.group.startswith(COLUMN) else ""

    def recorded(self, ids: Sequence[str] | None) -> dict[str, Any]:
        """The options as `dataset.json` holds them: the seed has a field of its own there, and
        of a list of ids it is the content that counts."""
        value = {k: v for k, v in vars(self).items() if k != "seed"}
        value["split"] = list(self.split)
        if ids is not None:
            value["ids"] = hashlib.sha256("\n".join(ids).encode()).hexdigest()
        return value
