"""Makes and prints the lists of `tensorbench list`.

The rows of lists are cached on disk, since computing them imports torch, MLflow and more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from tensorbench.cli.tables import each_of, fitted, plain_table
from tensorbench.machine.cache import cache_dir
from tensorbench.machine.files import sha256_of_all
from tensorbench.methods import METHODS, UserError
from tensorbench.methods.backbone import Geometry

if TYPE_CHECKING:
    from tensorbench.methods import Method
    from tensorbench.reports.advice import RateAdvice
    from tensorbench.tasks import Task

#: A row of a list: maps column names to contents.
Row = dict[str, Any]

SQLITE = "sqlite:///"

#: Cached rows are computed again if the source of one of these packages changes.
SOURCES = ("tensorbench", "tensorbench.methods", "tensorbench.baselines", "tensorbench.reports")

#: Cached rows are computed again if the version of one of these libraries changes.
LIBRARIES = ("peft", "torch", "transformers", "timm")

#: Methods are counted twice: with all ranks equal to this one, and within the budget of LoRA at this rank.
RANK = 4

#: Bytes per number in float32.
FLOAT32 = 4

#: The classes of a task are listed by name if there are at most this many.
MOST_CLASSES = 10


def print_methods(console: Console, rows: list[Row], geometry: Geometry) -> None:
    """Prints the rows of `count_methods`."""
    at_rank, at_budget = f"isorank {RANK}", f"isoparameters {RANK}"
    headings = ("name", "method", at_rank, at_budget, "ranks there", "frozen bytes", "stored of them")
    table = plain_table(
        f"Methods at {geometry}",
        *headings,
        texts=("method", "ranks there"),
        unbroken=("name",),
        folded=headings,
    )
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else cell or "–" for cell in row.values()))
    console.print(fitted(console, table, "stored of them", "frozen bytes"))


def print_listing(console: Console, title: str, rows: Sequence[Row]) -> None:
    """Prints the rows of `task_rows` or `backbone_rows`."""
    table = plain_table(title, *rows[0], texts=rows[0].keys())
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*map(escape, row.values()))
    console.print(table)


def print_stored(console: Console, uri: str, rows: Sequence[Row]) -> None:
    """Prints the rows of `stored_rows`."""
    title = uri
    if not uri.startswith(SQLITE):
        from tensorbench.store.addresses import shown_uri

        title = shown_uri(uri)
    if not rows:
        console.print(f"{title} contains no suite yet.", markup=False, soft_wrap=True)
        return
    studied = ["studies"] * any(row["studies"] for row in rows)
    heads = ("complete", "failed", "running", "missing", *studied, "others", "latest run")
    table = plain_table(title, "experiment", *heads, folded=("experiment",), unbroken=heads)
    for row in rows:
        failed = f"[red]{row['failed']}[/red]" if row["failed"] else "0"
        counts = [str(row["complete"]), failed, str(row["running"]), str(row["missing"])]
        if studied:
            counts.append(f"{row['studies_complete']} of {row['studies']}" if row["studies"] else "–")
        latest = datetime.fromtimestamp(row["latest"] / 1000).strftime("%Y-%m-%d %H:%M")
        table.add_row(escape(row["experiment"]), *counts, str(row["others"]), latest)
    console.print(fitted(console, table, "others", "running"))


def print_advice(console: Console, advice: Sequence[RateAdvice]) -> None:
    """Prints the learning rates to start from, with one row per method, budget, task and backbone."""
    several = ["experiment"] * (len({each.experiment for each in advice}) > 1)
    heads = [*several, "budget", "task", "backbone", "start", "within a point of the best", "share", "trials"]
    table = plain_table(
        "Learning rates by studies", "method", *heads, texts=heads[:-4], folded=("method", *heads[:-4])
    )
    for each in advice:
        names = [each.method, *([each.experiment] if several else []), each.budget, each.task, each.backbone]
        numbers = (f"{each.start:.2g}", each.range, f"{each.share:.0%}", str(each.trials))
        table.add_row(*map(escape, names), *numbers)
    table = fitted(console, table, "trials", "share", "backbone")
    console.print(table)
    share = any(column.header == "share" for column in table.columns)
    console.print(
        "start: the lowest smoothed validation loss in the range. "
        + "share: trials within a point of the best rate that did not fail. " * share
        + "≤ and ≥: the range ends with the tried rates; rates beyond may be as good.",
        markup=False,
        soft_wrap=True,
    )


def stored_rows(uri: str) -> list[Row]:
    """Lists the experiments of a store, with counts of their trials.

    The rows of a SQLite store are cached until its file changes. Other stores are read at every call.
    """

    def compute() -> list[Row]:
        from tensorbench.reports.stored import contents

        return [asdict(suite) for suite in contents(uri)]

    database = Path(uri.removeprefix(SQLITE)).absolute()
    if not uri.startswith(SQLITE) or not database.is_file():
        return compute()
    files = [file for file in (database, Path(f"{database}-wal")) if file.exists()]
    states = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    return _cached("stored", str(states), compute)


def count_methods(geometry: Geometry) -> list[Row]:
    """Lists all methods with their numbers of parameters on a backbone of this geometry.

    The numbers are given at rank 4, and at the ranks nearest to the budget of LoRA r=4. Also given are the
    bytes of frozen tensors in float32, in memory and in a stored adapter. All numbers are None for a method
    that cannot be counted from a geometry alone, or that exceeds the budget at every rank.
    """

    def rows(name: str, method: type[Method]) -> list[Row]:
        return [_method_row(name, template, geometry) for template in method.listed()]

    return _cached("methods", str(geometry), lambda: [row for each in each_of(METHODS, rows) for row in each])


def task_rows() -> list[Row]:
    """Lists all tasks with modality, classes, metric and description."""

    def compute() -> list[Row]:
        from tensorbench.tasks import TASKS

        return list(each_of(TASKS, _task_row))

    return _cached("tasks", "", compute)


def backbone_rows() -> list[Row]:
    """Lists all registered backbones with kind, input, geometry and description."""

    def compute() -> list[Row]:
        from tensorbench.backbones import BACKBONES

        return list(each_of(BACKBONES, _backbone_row))

    return _cached("backbones", "", compute)


def _cached(kind: str, of: str, compute: Callable[[], list[Row]]) -> list[Row]:
    """Returns rows from the cache folder, or computes and caches them.

    Rows are computed if none are cached, or if `of`, our source or a library has changed since. They are also
    computed if plug-ins of this kind are installed, because changes of the plug-ins are not noticed.
    """
    if entry_points(group=f"tensorbench.{kind}"):
        return compute()
    file, state = cache_dir() / f"{kind}.json", [of, *_state()]
    with suppress(OSError, ValueError, KeyError, TypeError):
        cached = json.loads(file.read_text(encoding="utf-8"))
        if cached["of"] == state:
            return list(cached["rows"])
    rows = compute()
    with suppress(OSError):
        file.write_text(json.dumps({"of": state, "rows": rows}), encoding="utf-8")
    return rows


def _state() -> list[str]:
    # In an editable installation the packages do not lie in each other.
    files = set[Path]()
    for package in SOURCES:
        spec = find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            files.update(Path(folder).rglob("*.py"))
    return [sha256_of_all(*sorted(files)), *map(version, LIBRARIES)]


def _method_row(name: str, template: Method, geometry: Geometry) -> Row:
    from tensorbench.methods import create

    budget = create("lora", rank=RANK).count(geometry)
    row: Row = {"name": name, "method": template.title}
    try:
        fitted = template.fit(geometry, budget)
        row[f"isorank_{RANK}"] = template.isorank(RANK).count(geometry)
        row[f"isoparameters_{RANK}"] = fitted.count(geometry)
        row["ranks"] = ",".join(map(str, fitted.size or ()))
        row["frozen_bytes"] = FLOAT32 * fitted.frozen_count(geometry) or None
        row["stored_bytes"] = FLOAT32 * fitted.kept_count(geometry) or None
    except UserError:
        # The method cannot be counted on a bare geometry (full fine-tuning), or exceeds this budget at any
        # rank.
        row |= {f"isorank_{RANK}": None, f"isoparameters_{RANK}": None, "ranks": ""}
        row |= {"frozen_bytes": None, "stored_bytes": None}
    return row


def _task_row(name: str, task: Task) -> Row:
    return {
        "task": name,
        "modality": task.modality,
        "classes": _answers(task),
        "metric": task.metric,
        "description": task.description,
    }


def _answers(task: Task) -> str:
    if task.target == "generation":
        return "written answers"
    if task.target == "regression":
        return f"a number{', in ' + task.unit if task.unit else ''}"
    return ", ".join(task.classes) if len(task.classes) <= MOST_CLASSES else str(len(task.classes))


def _backbone_row(name: str, _: object) -> Row:
    from tensorbench.backbones import describe

    info = describe(name)
    return {
        "backbone": info.name,
        "kind": info.kind,
        "input": info.input.modality,
        "geometry": str(info.geometry),
        "description": info.description,
    }
