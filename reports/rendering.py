"""The templates of the page and of the text formats."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from reports.words import no_interval


def environment(**options: Any) -> Environment:
    """Loads reports/templates. A name that a template misspells is an error, and lines with nothing but a
    statement leave nothing.
    """
    made = Environment(
        loader=PackageLoader("reports"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    made.filters["no_interval"] = no_interval
    return made
