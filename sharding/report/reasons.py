"""Reasons that differ only in their details are one reason. Pure."""

from __future__ import annotations

import re

__all__ = ["without_details"]

_DETAIL = re.compile(  # what is quoted (or cut short), JSON, and numbers such as 0xd9 or 640x480
    r"""("[^"]*("|…)|(?<!\w)'[^']*'(?!\w)|\[.*(\]|…)|\{.*(\}|…)|\b0x[0-9a-f]+|-?\d+([.,x]\d+)*)"""
)


def without_details(reason: str, id_: str) -> str:
    """A row's reason with `…` for what concerns that row alone; in it an id is the name of a
    file."""
    return _DETAIL.sub("…", reason.replace(f"/{id_}.", "/…."))
