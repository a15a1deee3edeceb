"""The dimensions of the page's selector, with which readers hide tables and figures.

An HTML element about certain budgets, tasks, backbones or families lists them in attributes, one per
dimension. In each dimension, a reader may select one value. The page's script (select.js) hides an
element if, in any dimension, its attribute lacks the selected value. A dimension in which nothing is selected
hides nothing. Nor does a dimension hide elements that lack its attribute.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from tensorbench.reports.study import Cell, TaskAndBackbone

#: The names of the attributes (`budget` stands for `data-budget`), each with the label of its selector.
DIMENSIONS = {
    "budget": "Budget",
    "task": "Task",
    "backbone": "Backbone",
    "family": "Family",
}


def marks(**values: str | Iterable[str]) -> Markup:
    """Formats attributes for an element, for example `marks(budget="isorank 4", task=("digits", "textile"))`.

    In the attribute, several values are separated by newlines.
    """
    texts = {
        name: value if isinstance(value, str) else "\n".join(dict.fromkeys(value))
        for name, value in values.items()
    }
    attributes = (Markup('data-{}="{}"').format(name, text) for name, text in texts.items())
    return Markup(" ").join(attributes)


def of_method(cell: Cell) -> Markup:
    """The attributes for an element about a method."""
    return marks(method=cell.method, family=cell.family)


def of_settings(settings: Iterable[TaskAndBackbone]) -> Markup:
    """The attributes for an element about settings."""
    pairs = list(settings)
    return marks(task=(pair.task for pair in pairs), backbone=(pair.backbone for pair in pairs))


def choices(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """The values among which readers select, for each dimension."""
    return {name: list(dict.fromkeys(getattr(cell, name) for cell in cells)) for name in DIMENSIONS}
