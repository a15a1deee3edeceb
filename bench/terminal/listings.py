"""The lists of tasks and backbones."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from bench.backbones import BACKBONES, describe
from bench.tasks import TASKS, Task
from bench.terminal.tables import each_of, plain_table

#: A task's classes are named up to so many.
MOST_CLASSES = 10


def list_tasks() -> Table:
    """Every task with its modality, classes and metric."""
    table = _listing("Tasks", "task", "modality", "classes", "metric", "what it is")
    for name, task in TASKS.available():
        cells = (name, task.modality, _answers(task), task.metric, task.description)
        table.add_row(*map(escape, cells))
    return table


def _answers(task: Task) -> str:
    """What a model answers with: a class, a number or a text."""
    if task.target == "generation":
        return "written answers"
    if task.target == "regression":
        return f"a number{', in ' + task.unit if task.unit else ''}"
    return ", ".join(task.classes) if len(task.classes) <= MOST_CLASSES else str(len(task.classes))


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
