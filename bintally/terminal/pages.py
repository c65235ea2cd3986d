"""Pages of reports: templates whose every value is escaped, and how their numbers are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

__all__ = ["duration", "fixed", "percent", "render_page"]


def render_page(package: str, filters: Mapping[str, Callable[..., object]], **values: Any) -> str:
    """The text of `report.html.j2` of a package, with `values` in it: the same for the same."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(filters)
    template = resources.files(package).joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(values)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def fixed(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
