"""The lists of methods, tasks and backbones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from rich.markup import escape
from rich.table import Table

from bench.backbones import BACKBONES, describe
from bench.plan.cells import REFERENCE_RANK
from bench.tasks import TASKS
from bench.terminal.tables import plain_table
from methods import METHODS, Geometry, Method, UserError, create
from methods.registry import Registry

Shown = TypeVar("Shown")

#: A task's classes are named up to so many.
MOST_CLASSES = 10


def count_methods(geometry: Geometry) -> list[dict[str, Any]]:
    """Every method with its parameters at isorank 4 and nearest to LoRA r=4, and its ranks there."""

    def rows(name: str, cls: type[Method]) -> list[dict[str, Any]]:
        return [_method_row(name, template, geometry) for template in cls.listed()]

    return [row for found in _each(METHODS, rows) for row in found]


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
    for info in _each(BACKBONES, lambda name, _: describe(name)):
        table.add_row(
            *map(escape, (info.name, info.kind, info.input.modality, str(info.geometry), info.description))
        )
    return table


def _each(registry: Registry, show: Callable[[str, Any], Shown]) -> Iterator[Shown]:
    """What `show` makes of every name and target; one that a plug-in's mistake stops is told and left out."""
    for name, target in registry.available():
        try:
            with registry.blaming(name):
                shown = show(name, target)
        except UserError as error:
            warnings.warn(str(error), stacklevel=2)
        else:
            yield shown


def _listing(title: str, *headings: str) -> Table:
    table = plain_table(title, *headings, texts=headings)
    table.columns[0].no_wrap = True
    return table
