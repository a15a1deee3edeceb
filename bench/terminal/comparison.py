"""The comparison of two experiments at the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.terminal.tables import plain_table
from reports.units import unit_of

if TYPE_CHECKING:
    from reports.compare import Change, Comparison, Move

#: Cells that only one side has are named up to so many.
MOST_NAMED = 8


def print_comparison(console: Console, found: Comparison) -> None:
    """Changes, then cells, then what only one side has."""
    if found.changes:
        console.print(_changes(found.names, found.changes))
    elif found.moves:
        console.print("Neither configuration nor surroundings differ.")
    if found.moves:
        for task, backbone in dict.fromkeys((move.task, move.backbone) for move in found.moves):
            moves = [move for move in found.moves if (move.task, move.backbone) == (task, backbone)]
            console.print(_moves(f"{task} · {backbone}", found.names, moves))
        moved = sum(move.verdict == "moved" for move in found.moves)
        tested = sum(move.p is not None for move in found.moves)
        console.print(
            f"{moved} of {len(found.moves)} common cells moved beyond noise ({tested} could be tested)."
        )
        if not tested:
            console.print("Two seeds of different trials on either side are the least that can be tested.")
    else:
        console.print("They have no cell in common: no method under one budget on one task and backbone.")
    for name, only in zip(found.names, found.only, strict=True):
        if only:
            more = f" and {len(only) - MOST_NAMED} more" if len(only) > MOST_NAMED else ""
            console.print(escape(f"Only in {name}: {'; '.join(only[:MOST_NAMED])}{more}."))


def _changes(names: tuple[str, str], changes: Sequence[Change]) -> Table:
    a, b = names
    columns = ("what", a, b, "cells")
    table = plain_table(f"What differs: {a} → {b}", *columns, texts=columns, folded=columns)
    for change in changes:
        cells = f"{change.cells}, as {change.example}" if change.cells else "all"
        table.add_row(*map(escape, (change.what, change.before, change.after, cells)))
    return table


def _moves(title: str, names: tuple[str, str], moves: Sequence[Move]) -> Table:
    metric = moves[0].metric
    unit = unit_of(metric)
    title += ", in percent" if unit.mark else f", {metric} in units of the targets"
    columns = ("method", "budget", *names, "difference", "95%", "seeds", "p (Holm)", "verdict")
    table = plain_table(title, *columns, texts=("budget",), whole=columns[1:])
    for move in moves:
        scores = [unit.score(value) for value in (move.before, move.after)]
        points = [unit.difference(value) for value in (move.interval or ())]
        difference = unit.difference(move.difference)
        p = "–" if move.p_holm is None else f"{move.p_holm:.3g}"
        cells = (*scores, difference, " to ".join(points) or "–", _seeds(move), p, move.verdict)
        table.add_row(*map(escape, (move.method, move.budget, *cells)))
    return table


def _seeds(move: Move) -> str:
    told = [
        f"{done}" if done == planned else f"{done} of {planned}"
        for done, planned in zip(move.seeds, move.planned, strict=True)
    ]
    return f"{told[0]} paired" if move.paired and move.verdict != "incomplete" else ", ".join(told)
