"""The environment of the templates, with filters that format numbers."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tensorbench.reports.units import NOTHING, minus, unit_of
from tensorbench.reports.words import many, no_interval
from tensorbench.store.addresses import shown_uri

_SIZES = ((9, "GB"), (6, "MB"), (3, "kB"))


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
        "no_interval": no_interval,
        "count": lambda value: NOTHING if value is None else f"{value:,.0f}",
        "bytes": _bytes,
        "number": _number,
        "range": _range,
        "shown_uri": shown_uri,
    }
    return loader


def _percent(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None else f"{100 * value:.{digits}f}"


def _bytes(value: float | None) -> str:
    if value is None:
        return NOTHING
    power, unit = next((size for size in _SIZES if value >= 10 ** size[0]), (0, "B"))
    return f"{value / 10**power:.{min(power, 1)}f} {unit}"


def _number(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}".replace("-", "−")


def _range(value: tuple[float, float] | None, digits: int = 0) -> str:
    """Formats a range, or a single number if its ends look the same when printed."""
    if value is None:
        return NOTHING
    ends = dict.fromkeys(f"{end:,.{digits}f}" for end in value)
    return "–".join(ends)
