"""The environment of the templates, with filters that format numbers."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tensorbench.reports.units import NOTHING, minus, unit_of
from tensorbench.reports.words import many
from tensorbench.store.addresses import shown_uri


def environment(**options: Any) -> Environment:
    """The Jinja environment for the templates in reports/templates. `options` are passed to Jinja.

    In a template, an undefined name is an error, and a line that has only a statement leaves no blank line.
    """
    loader = Environment(
        loader=PackageLoader("tensorbench.reports"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    loader.filters |= {
        "percent": _percent,
        "share": lambda value: f"{100 * value:.0f}%",
        "unit": unit_of,
        "minus": minus,
        "many": many,
        "count": lambda value: NOTHING if value is None else f"{value:,.0f}",
        "number": _number,
        "shown_uri": shown_uri,
    }
    return loader


def _percent(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None else f"{100 * value:.{digits}f}"


def _number(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}".replace("-", "−")
