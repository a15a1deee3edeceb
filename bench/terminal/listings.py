"""The lists of tasks and backbones."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from bench.backbones import BACKBONES, describe
from bench.tasks import TASKS
from bench.terminal.tables import each_of, plain_table

#: A task's classes are named up to so many.
MOST_CLASSES = 10


def list_tasks() -> Table:
    """Every task with its modality, classes and metric."""
    table = _listing("Tasks", "task", "modality", "classes", "metric", "what it is")
    for name, task in TASKS.available():
        classes = ", ".join(task.classes) if len(task.classes) <= MOST_CLASSES else str(len(task.classes))
        classes = classes or f"a number{', in ' + task.unit if task.unit else ''}"
        table.add_row(*map(escape, (name, task.modality, classes, task.metric, task.description)))
    return table


def list_backbones() -> Table:
    """Every registered backbone with its kind, input and geometry."""
    table = _listing("Backbones", "backbone", "kind", "input", "geometry", "what it is")
    for info in each_of(BACKBONES, lambda name, _: describe(name)):
        table.add_row(
            *map(escape, (info.name, info.kind, info.input.modality, str(info.geometry), info.description))
        )
    return table


def _listing(title: str, *headings: str) -> Table:
    table = plain_table(title, *headings, texts=headings)
    table.columns[0].no_wrap = True
    return table
