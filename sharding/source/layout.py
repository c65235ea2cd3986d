"""Where a source's labels are: in ABID's metadata, in a file, or in the names of folders."""

from __future__ import annotations

from bintally.errors import UsageError
from bintally.storage.place import Place
from sharding.distribute import Distributor
from sharding.planning.options import Options
from sharding.source.abid.bucket import is_abid, read_abid
from sharding.source.class_folders import read_class_folders
from sharding.source.labelled import read_labelled
from sharding.source.labels_file import read_labels
from sharding.source.listing import is_anonymous, list_source
from sharding.source.rows import SourceRows

__all__ = ["read_source"]


def read_source(
    source: Place,
    options: Options,
    distributor: Distributor,
    connections: int,
    *,
    labels: str | None = None,
    listing: str | None = None,
) -> SourceRows:
    """What a source holds, with the labels of its photos.

    `labels` is a file of labels (`read_labels`); without it they are found by the layout. `listing`
    is a list of the source's objects (`list_source`). `distributor` runs the jobs that read
    metadata, with `connections` requests in flight in all.

    Raises `UsageError` where the source is not there, holds no photos or no labels, or where the
    files do not fit; `WorkError` where of its metadata nothing can be had.
    """
    source.check()
    column = options.group_column
    if column and labels is None:
        raise UsageError(f"--group {options.group}: names a column, and there is no --labels file")
    objects = [list_source(source, listing)]
    if labels is not None:
        named = read_labels(labels, group=column or None, anonymous=is_anonymous(source))
        return read_labelled(objects.pop(), named, source)
    if is_abid(objects[0]):
        # Handed over, so that it ends where its rows are made: it is as large as they are.
        return read_abid(source, objects.pop(), distributor, connections)
    return read_class_folders(objects.pop(), source)
