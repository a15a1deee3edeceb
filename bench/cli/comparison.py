"""Prints the comparison of two experiments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tensorbench.cli.tables import fitted, plain_table
from tensorbench.methods.errors import first_few
from tensorbench.reports.inference.intervals import LEAST_SEEDS
from tensorbench.reports.units import unit_of

if TYPE_CHECKING:
    from tensorbench.reports.compare import Change, Comparison, Move

#: If only one experiment has some cells, at most this many of them are named.
MOST_NAMED = 8
#: On terminals with at least this many columns the means of both experiments are always shown.
ROOM = 100


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Prints what differs between two experiments: configuration, scores of common cells, and other cells."""
    if comparison.changes:
        console.print(_changes(comparison.names, comparison.changes))
    elif comparison.moves:
        console.print("Neither configuration nor provenance differs.")
    if comparison.moves:
        for task, backbone in dict.fromkeys((move.task, move.backbone) for move in comparison.moves):
            moves = [move for move in comparison.moves if (move.task, move.backbone) == (task, backbone)]
            table = _moves(f"{task} · {backbone}", comparison.names, moves)
            spare = ("seeds", *(map(escape, comparison.names) if console.width < ROOM else ()))
            console.print(fitted(console, table, *spare))
        _close(console, comparison)
    else:
        console.print("The experiments share no cell (a method under one budget on one task and backbone).")
    for name, only in zip(comparison.names, comparison.only, strict=True):
        if only:
            console.print(escape(f"Only in {name}: {first_few(only, MOST_NAMED, '; ')}."))


def _close(console: Console, comparison: Comparison) -> None:
    moves = comparison.moves
    tested = [move for move in moves if move.interval is not None]
    console.print(
        f"{sum(move.moved for move in moves)} of {len(moves)} common cells changed: their interval excludes "
        f"zero ({len(tested)} could be tested)."
    )
    for move in (move for move in moves if move.differs):
        why = "; ".join(f"{key} {before} → {after}" for key, (before, after) in move.differs.items())
        console.print(escape(f"{move.method} on {move.task}, {move.budget}: not compared, since {why}."))
    if tested:
        _print_thresholds(console, tested)
    elif not all(move.differs for move in moves):
        console.print(
            f"Nothing could be tested: that takes {LEAST_SEEDS} seeds of different trials on either side."
        )
    for note in comparison.notes:
        console.print(f"[yellow]note:[/yellow] {escape(note)}", highlight=False)


def _print_thresholds(console: Console, tested: Sequence[Move]) -> None:
    matters = ", ".join(
        _matters(
            metric, unit, [move.threshold for move in tested if (move.metric, move.unit) == (metric, unit)]
        )
        for metric, unit in dict.fromkeys((move.metric, move.unit) for move in tested)
    )
    alone = "" if all(move.examples for move in tested) else ", or seeds alone (*)"
    console.print(
        f"Intervals are simultaneous (95%), over seeds and test examples{alone}. Thresholds: {matters}.",
        highlight=False,
    )


def _matters(metric: str, unit: str, thresholds: Sequence[float]) -> str:
    size, low, high = unit_of(metric, unit).size, min(thresholds), max(thresholds)
    return f"{size(low)} of {metric}" if low == high else f"{size(low)} to {size(high)} of {metric}"


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
    unit = unit_of(metric, next((move.unit for move in moves if move.unit), ""))
    title += ", in percent" if unit.mark else f", {metric} in {unit.points}"
    columns = ("method", "budget", *names, "difference", "95%", "seeds", "verdict")
    table = plain_table(title, *columns, texts=("budget", "verdict"), folded=columns)
    # A pack's path may be wider than the terminal.
    for column in table.columns[2:4]:
        column.max_width = 16
    for move in moves:
        scores = [unit.score(value) for value in (move.before, move.after)]
        points = [unit.difference(value) for value in (move.interval or ())]
        interval = (" to ".join(points) + "*" * (not move.examples)) if points else "–"
        cells = (*scores, unit.difference(move.difference), interval, _seeds(move), move.verdict)
        table.add_row(*map(escape, (move.method, move.budget, *cells)))
    return table


def _seeds(move: Move) -> str:
    counts = [
        f"{done}" if done == planned else f"{done} of {planned}"
        for done, planned in zip(move.seeds, move.planned, strict=True)
    ]
    if not move.pairs:
        return ", ".join(counts)
    return f"{move.pairs} pairs" + ("" if {move.pairs} == {*move.planned} else f" of {max(move.planned)}")
