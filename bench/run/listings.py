"""Tables of the stored experiments and of the registered methods, tasks and backbones.

The lines of the tables are cached on disk, since computing them imports torch, MLflow and more.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from importlib.metadata import entry_points, version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorbench.machine.cache import cache_dir
from tensorbench.machine.files import sha256_of_all
from tensorbench.machine.table import Table
from tensorbench.methods import METHODS, UserError
from tensorbench.methods.backbone import Geometry
from tensorbench.methods.registry import Registry
from tensorbench.records.measures import FLOAT32
from tensorbench.store import DEFAULT_STORE
from tensorbench.store.addresses import shown_uri

if TYPE_CHECKING:
    from tensorbench.methods import Method
    from tensorbench.tasks import Task

#: A line of a table: maps column names to contents.
Line = dict[str, Any]

SQLITE = "sqlite:///"

#: Cached lines are computed again if the source of one of these packages changes.
SOURCES = ("tensorbench", "tensorbench.methods", "tensorbench.baselines", "tensorbench.reports")

#: Cached lines are computed again if the version of one of these libraries changes.
LIBRARIES = ("peft", "torch", "transformers", "timm")

#: Methods are counted twice: with all ranks equal to this one, and within the budget of LoRA at this rank.
RANK = 4

#: The classes of a task are listed by name if there are at most this many.
MOST_CLASSES = 10


def list_experiments(store: str = DEFAULT_STORE) -> Table:
    """Lists the experiments of a store, with counts of their trials and the start of the latest one.

    The lines of a SQLite store are cached until its file changes. Other stores are read at every call. Raises
    UserError if there is no store, or if it cannot be read.
    """

    def compute() -> list[Line]:
        from tensorbench.reports.contents import contents

        return [vars(experiment) for experiment in contents(store)]

    database = Path(store.removeprefix(SQLITE)).absolute()
    if not store.startswith(SQLITE) or not database.is_file():
        values = compute()
    else:
        files = [file for file in (database, Path(f"{database}-wal")) if file.exists()]
        states = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]
        values = _cached("stored", str(states), compute)
    studied = any(value["studies"] for value in values)
    lines = []
    for value in values:
        line = {name: value[name] for name in ("experiment", "complete", "failed", "running", "missing")}
        line["failed"] = f"✗ {line['failed']:,}" if line["failed"] else 0
        if studied:
            complete, planned = value["studies_complete"], value["studies"]
            line["studies"] = f"{complete} of {planned}" if planned else None
        latest = datetime.fromtimestamp(value["latest"] / 1000)
        lines.append(line | {"others": value["others"], "latest run": f"{latest:%Y-%m-%d %H:%M}"})
    title = shown_uri(store) if lines else f"{shown_uri(store)} contains no suite yet."
    return Table(title, lines, texts=("experiment",), spare=("others", "running"), values=values)


def list_methods(hidden: int = 768, heads: int = 12, layers: int = 12) -> Table:
    """Lists all methods with their numbers of parameters on a backbone of this geometry.

    The defaults are those of ViT-B and RoBERTa-base. The numbers are given at rank 4, and at the ranks
    nearest to the budget of LoRA r=4. The table also has the bytes of frozen tensors in float32, in memory
    and in a stored adapter. All numbers are None for a method that cannot be counted from a geometry alone,
    or that exceeds the budget at every rank.
    """
    geometry = Geometry(hidden, heads, layers, 4 * hidden)

    def lines(name: str, method: type[Method]) -> list[Line]:
        return [_method(name, template, geometry) for template in method.listed()]

    counted = _cached("methods", str(geometry), lambda: list(chain(*_each_of(METHODS, lines))))
    return Table(
        f"Methods at {geometry}",
        counted,
        texts=("name", "method", "ranks"),
        spare=("stored_bytes", "frozen_bytes", f"isorank_{RANK}", "ranks"),
    )


def list_tasks() -> Table:
    """Lists all tasks with modality, classes, metric and description."""

    def compute() -> list[Line]:
        from tensorbench.tasks import TASKS

        return list(_each_of(TASKS, _task))

    lines = _cached("tasks", "", compute)
    return Table("Tasks", lines, texts=tuple(lines[0]))


def list_backbones() -> Table:
    """Lists all registered backbones with kind, input, geometry and description."""

    def compute() -> list[Line]:
        from tensorbench.backbones import BACKBONES

        return list(_each_of(BACKBONES, _backbone))

    lines = _cached("backbones", "", compute)
    return Table("Backbones", lines, texts=tuple(lines[0]))


def _each_of(registry: Registry, describe: Callable[[str, Any], Any]) -> Iterator[Any]:
    """Describes each entry of a registry. A plug-in for which this fails is skipped with a warning."""
    for name, target in registry.available():
        try:
            with registry.blaming(name):
                described = describe(name, target)
        except UserError as error:
            warnings.warn(str(error), stacklevel=2)
        else:
            yield described


def _cached(kind: str, of: str, compute: Callable[[], list[Line]]) -> list[Line]:
    """Returns lines from the cache folder, or computes and caches them.

    `of` describes the other inputs of `compute`. The cache is not used if `of`, the source of this package or
    the version of a library has changed. It is also not used if plug-ins of this kind are installed, because
    changes of their source would go unnoticed.
    """
    if entry_points(group=f"tensorbench.{kind}"):
        return compute()
    # In an editable installation, the folders of the packages are not nested.
    sources = set[Path]()
    for package in SOURCES:
        spec = find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            sources.update(Path(folder).rglob("*.py"))
    state = [of, sha256_of_all(*sorted(sources)), *map(version, LIBRARIES)]
    file = cache_dir() / f"{kind}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        cached = json.loads(file.read_text(encoding="utf-8"))
        if cached["of"] == state:
            return list(cached["rows"])
    lines = compute()
    with suppress(OSError):
        file.write_text(json.dumps({"of": state, "rows": lines}), encoding="utf-8")
    return lines


def _method(name: str, template: Method, geometry: Geometry) -> Line:
    from tensorbench.methods import create

    budget = create("lora", rank=RANK).count(geometry)
    counts: Line = dict.fromkeys((f"isorank_{RANK}", f"isoparameters_{RANK}", "ranks"))
    counts |= {"frozen_bytes": None, "stored_bytes": None}
    # A method that cannot be counted on a bare geometry (full fine-tuning), or that exceeds this budget at
    # any rank, has no counts.
    with suppress(UserError):
        fitted = template.fit(geometry, budget)
        counts = {
            f"isorank_{RANK}": template.isorank(RANK).count(geometry),
            f"isoparameters_{RANK}": fitted.count(geometry),
            "ranks": ",".join(map(str, fitted.size or ())) or None,
            "frozen_bytes": FLOAT32 * fitted.frozen_count(geometry) or None,
            "stored_bytes": FLOAT32 * fitted.kept_count(geometry) or None,
        }
    return {"name": name, "method": template.title, **counts}


def _task(name: str, task: Task) -> Line:
    classes = ", ".join(task.classes) if len(task.classes) <= MOST_CLASSES else str(len(task.classes))
    answers = {
        "generation": "written answers",
        "regression": f"a number{', in ' + task.unit if task.unit else ''}",
    }
    return {
        "task": name,
        "modality": task.modality,
        "classes": answers.get(task.target, classes),
        "metric": task.metric,
        "description": task.description,
    }


def _backbone(name: str, _: object) -> Line:
    from tensorbench.backbones import describe

    info = describe(name)
    return {
        "backbone": info.name,
        "kind": info.kind,
        "input": info.input.modality,
        "geometry": str(info.geometry),
        "description": info.description,
    }
