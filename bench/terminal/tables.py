"""What the tables at the terminal share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from bench.wire.plan import PlannedRow
from bench.wire.words import OWN_SIZE
from methods import UserError
from methods.registry import Registry

if TYPE_CHECKING:
    from reports.study import Cell

Shown = TypeVar("Shown")


def plain_table(
    title: str,
    *headings: str,
    texts: Collection[str] = ("mode",),
    whole: Collection[str] = (),
    folded: Collection[str] = (),
) -> Table:
    """A table with these columns: the first and those in `texts` hold text, the others numbers.

    On a narrow terminal the cells of the columns in `whole` stay on one line, and those in `folded` go on in
    the next one rather than being cut.
    """
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(
            escape(heading),
            justify="left" if heading in (headings[0], *texts) else "right",
            no_wrap=heading in whole,
            overflow="fold" if heading in folded else "ellipsis",
        )
    return table


def fitted(console: Console, table: Table, *spare: str) -> Table:
    """The table, without columns of these headings while it is too wide, the first one first."""
    for heading in spare:
        if Measurement.get(console, console.options.update(max_width=1000), table).maximum <= console.width:
            break
        kept = [column for column in table.columns if column.header != heading]
        table = copy(table)
        table.columns = [replace(column, _index=index) for index, column in enumerate(kept)]
    return table


class RowTable:
    """Rows of a plan or a summary, with a heading wherever the budget changes."""

    def __init__(self, title: str, *measured: str) -> None:
        numbers = ("params", "% LoRA", "budget", *measured)
        # A seed's failures are words, which may go on in the next line.
        whole = [heading for heading in ("ranks", *numbers) if heading != "seeds"]
        self.table = plain_table(title, "method", "ranks", *numbers, texts=("ranks",), whole=whole)
        self.table.columns[0].min_width = 15
        self._block: str | None = ""

    def add(self, row: PlannedRow | Cell, *measured: str) -> None:
        if row.budget != self._block:
            self.table.add_row(f"[bold]{row.budget or OWN_SIZE}[/bold]")
            self._block = row.budget
        # What training left of ranks that it cuts differs from seed to seed.
        ranks = joined(row.ranks) if isinstance(row, PlannedRow) else "cut" if row.left else row.ranks
        ratio = "–" if row.ratio is None else f"{row.ratio:.3f}" + " !" * (row.within is False)
        self.table.add_row(
            escape(row.method),
            ranks or "–",
            f"{row.parameters:,}" + (f" (peak {row.peak:,.0f})" if row.peak else ""),
            f"{row.percent_of_lora:.2f}",
            ratio,
            *measured,
        )


def print_missed(console: Console, rows: int) -> None:
    if rows:
        console.print(
            f"[yellow]{rows} row(s) marked ! miss their budget by more than its tolerance.[/yellow]"
        )


def print_warnings(console: Console, warnings: Iterable[str]) -> None:
    for warning in warnings:
        console.print(f"[yellow]{escape(warning)}[/yellow]", highlight=False)


def each_of(registry: Registry, show: Callable[[str, Any], Shown]) -> Iterator[Shown]:
    """What `show` makes of every name and target; one that a plug-in's mistake stops is told and left out."""
    for name, target in registry.available():
        try:
            with registry.blaming(name):
                shown = show(name, target)
        except UserError as error:
            warnings.warn(str(error), stacklevel=2)
        else:
            yield shown


def joined(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))
