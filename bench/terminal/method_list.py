"""The list of methods, with what each counts. Counts are kept, since some methods take seconds to import."""

from __future__ import annotations

import json
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bench.process.files import sha256_of_all
from bench.sources.assets import cache_dir
from bench.terminal.tables import each_of, fitted, plain_table
from methods import METHODS, UserError
from methods.backbone import Geometry

if TYPE_CHECKING:
    from methods import Method

#: The packages of methods, whose source says what was counted.
SOURCES = ("methods", "baselines")

#: What counts come from besides: peft's methods are counted by building them.
LIBRARIES = ("peft", "torch")

#: The rank of every count, and of the LoRA whose count the methods are fitted to.
RANK = 4

#: Bytes of a number.
FLOAT32 = 4


def print_methods(console: Console, rows: list[dict[str, Any]], geometry: Geometry) -> None:
    """The table of what `count_methods` gave."""
    at_rank, at_budget = f"isorank {RANK}", f"isoparameters {RANK}"
    headings = ("name", "method", at_rank, at_budget, "ranks there", "frozen bytes", "stored of them")
    table = plain_table(
        f"Methods at {geometry}", *headings, texts=("method", "ranks there"), whole=("name",), folded=headings
    )
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else cell or "–" for cell in row.values()))
    console.print(fitted(console, table, "stored of them", "frozen bytes"))


def count_methods(geometry: Geometry) -> list[dict[str, Any]]:
    """Every method with its parameters at isorank 4 and nearest to LoRA r=4, and its ranks there.

    Beside them are the bytes that it carries frozen there, in float32, and those that a stored adapter holds.
    Counts of our own methods are kept in the cache folder until a method's source or a library changes. Where
    a plug-in brings methods all are counted anew: nothing tells when what it consists of changes.
    """
    if METHODS.plugins:
        return _counted(geometry)
    kept, state = cache_dir() / "methods.json", _state(geometry)
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(kept.read_text(encoding="utf-8"))
        if known["of"] == state:
            return list(known["rows"])
    rows = _counted(geometry)
    with suppress(OSError):
        kept.write_text(json.dumps({"of": state, "rows": rows}), encoding="utf-8")
    return rows


def _state(geometry: Geometry) -> list[str]:
    """What the counts depend on."""
    files = [Path(__file__)]
    for package in SOURCES:
        spec = find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            files += sorted(Path(folder).rglob("*.py"))
    return [str(geometry), sha256_of_all(*files), *map(version, LIBRARIES)]


def _counted(geometry: Geometry) -> list[dict[str, Any]]:
    def rows(name: str, method: type[Method]) -> list[dict[str, Any]]:
        return [_row(name, template, geometry) for template in method.listed()]

    return [row for found in each_of(METHODS, rows) for row in found]


def _row(name: str, template: Method, geometry: Geometry) -> dict[str, Any]:
    from methods import create

    budget = create("lora", rank=RANK).count(geometry)
    row: dict[str, Any] = {"name": name, "method": template.title}
    try:
        fitted = template.fit(geometry, budget)
        row[f"isorank_{RANK}"] = template.isorank(RANK).count(geometry)
        row[f"isoparameters_{RANK}"] = fitted.count(geometry)
        row["ranks"] = ",".join(map(str, fitted.size or ()))
        row["frozen_bytes"] = FLOAT32 * fitted.frozen_count(geometry) or None
        row["stored_bytes"] = FLOAT32 * fitted.kept_count(geometry) or None
    except UserError:
        # Not to be counted on a bare geometry (full fine-tuning), or larger than this budget at any rank.
        row |= {f"isorank_{RANK}": None, f"isoparameters_{RANK}": None, "ranks": ""}
        row |= {"frozen_bytes": None, "stored_bytes": None}
    return row
