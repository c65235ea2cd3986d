"""The OpenAPI description of the routes, which `openapi.yaml` holds: a function of the limits."""

from __future__ import annotations

from importlib import resources
from string import Template
from typing import Any

import yaml

from bintally import __version__
from serving.answer import SURE
from serving.config import Limits
from serving.http.request import MAX_ID, MAX_QUANTITY

__all__ = ["describe_api"]


def describe_api(limits: Limits) -> dict[str, Any]:
    """OpenAPI 3.1."""
    text = resources.files(__package__).joinpath("openapi.yaml").read_text(encoding="utf-8")
    described: dict[str, Any] = yaml.safe_load(
        Template(text).substitute(
            version=__version__,
            photos=limits.photos,
            body_bytes=f"{limits.body_bytes:,}",
            photo_pixels=f"{limits.photo_pixels:,}",
            receive_s=f"{limits.receive_s:g}",
            max_quantity=MAX_QUANTITY,
            max_id=MAX_ID,
            sure=SURE,
        )
    )
    return described
