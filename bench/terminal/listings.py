"""The lists of methods, tasks and backbones."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from bench.backbones import BACKBONES
from bench.plan.cells import REFERENCE_RANK
from bench.tasks import TASKS
from bench.terminal.tables import plain_table
from methods import METHODS, Geometry, Method, UserError, create

#: A task's classes are named up to so many.
MOST_CLASSES = 10


def count_methods(geometry: Geometry) -> list[dict[str, Any]]:
    """Every method with its parameters at isorank 4 and nearest to LoRA r=4, and its ranks there."""
    return [
        _method_row(name, template, geometry)
        for name, cls in METHODS.available()
        for template in cls.listed()
    ]


def _method_row(name: str, template: Method, geometry: Geometry) -> dict[str, Any]:
    budget = create("lora", rank=REFERENCE_RANK).count(geometry)
    row: dict[str, Any] = {"name": name, "method": template.title}
    try:
        fitted = template.fit(geometry, budget)
        row["isorank_4"] = template.isorank(REFERENCE_RANK).count(geometry)
        row["isoparameters_4"] = fitted.count(geometry)
        row["ranks"] = ",".join(map(str, fitted.size or ()))
    except UserError:
        # Not to be counted on a bare geometry (full fine-tuning), or larger than this budget at any rank.
        row |= {"isorank_4": None, "isoparameters_4": None, "ranks": ""}
    return row


def list_methods(rows: list[dict[str, Any]], geometry: Geometry) -> Table:
    """The table of what `count_methods` gave."""
    headings = ("name", "method", "isorank 4", "isoparameters 4", "ranks there")
    table = plain_table(f"Methods at {geometry}", *headings, texts=("method", "ranks there"))
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else cell or "–" for cell in row.values()))
    return table


def list_tasks() -> Table:
    """Every task with its modality, classes and metric."""
    table = _listing("Tasks", "task", "modality", "classes", "metric", "what it is")
    for name, task in TASKS.available():
        classes = ", ".join(task.classes) if len(task.classes) <= MOST_CLASSES else str(len(task.classes))
        table.add_row(*map(escape, (name, task.modality, classes, task.metric, task.description)))
    return table


def list_backbones() -> Table:
    """Every registered backbone with its kind, input and geometry."""
    table = _listing("Backbones", "backbone", "kind", "input", "geometry", "what it is")
    for name, entry in BACKBONES.available():
        info = entry.describe(None)
        table.add_row(
            *map(escape, (name, info.kind, info.input.modality, str(info.geometry), info.description))
        )
    return table


def _listing(title: str, *headings: str) -> Table:
    table = plain_table(title, *headings, texts=headings)
    table.columns[0].no_wrap = True
    return table
