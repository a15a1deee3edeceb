"""What the page's one selector chooses by, for tables and figures alike.

An element that belongs to some budgets, tasks, backbones, families or capabilities says so in attributes, and
the page's script hides it where none of them is chosen. What has no such attribute is always shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from reports.study import Cell, TaskAndBackbone

#: The attributes, each with its label.
DIMENSIONS = {
    "budget": "Budget",
    "task": "Task",
    "backbone": "Backbone",
    "family": "Family",
    "capability": "Capability",
}


def capabilities(cell: Cell) -> tuple[str, ...]:
    """The words of `methods.capabilities.Capability` stored by the cell's runs. Empty without any."""
    return tuple(word for word in cell.capabilities.split(", ") if word)


def marks(**values: str | Iterable[str]) -> Markup:
    """Attributes of an element: `budget="isorank 4"`, `task=("digits", "textile")`.

    Several values of one attribute stand on lines of their own.
    """
    told = {
        name: value if isinstance(value, str) else "\n".join(dict.fromkeys(value))
        for name, value in values.items()
    }
    attributes = (Markup('data-{}="{}"').format(name, text) for name, text in told.items())
    return Markup(" ").join(attributes)


def of_method(cell: Cell) -> Markup:
    """The attributes of what is about a method, on whatever setting."""
    return marks(method=cell.method, family=cell.family, capability=capabilities(cell))


def of_settings(settings: Iterable[TaskAndBackbone]) -> Markup:
    """The attributes of what is about settings."""
    found = list(settings)
    return marks(task=(s.task for s in found), backbone=(s.backbone for s in found))


def choices(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """What there is to choose from in each dimension."""
    found = {
        name: list(dict.fromkeys(getattr(cell, name) for cell in cells))
        for name in DIMENSIONS
        if name != "capability"
    }
    known = (word for cell in cells for word in capabilities(cell))
    return found | {"capability": list(dict.fromkeys(known))}
