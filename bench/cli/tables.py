"""Tables, progress bars and formatted numbers that several commands print."""

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
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table
from rich.text import Text

from tensorbench.methods import UserError
from tensorbench.methods.registry import Registry
from tensorbench.records.stored_plan import Row, row_texts
from tensorbench.records.words import OWN_SIZE

if TYPE_CHECKING:
    from tensorbench.reports.results import Cell

#: The remaining time is estimated from the progress in this many past seconds.
PACE = 300.0

Shown = TypeVar("Shown")


def plain_table(
    title: str,
    *headings: str,
    texts: Collection[str] = ("mode",),
    unbroken: Collection[str] = (),
    folded: Collection[str] = (),
) -> Table:
    """Makes an empty table with a column for each heading.

    The first column and the columns in `texts` contain text. All other columns contain numbers. If the
    terminal is narrow, cells of columns in `unbroken` stay on one line, and cells of columns in `folded`
    continue on the next line. All other cells are shortened.
    """
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(
            escape(heading),
            justify="left" if heading in (headings[0], *texts) else "right",
            no_wrap=heading in unbroken,
            overflow="fold" if heading in folded else "ellipsis",
        )
    return table


def fitted(console: Console, table: Table, *spare: str) -> Table:
    """Returns the table without some columns, if it is wider than the terminal.

    The columns with the headings `spare` are left out one after the other, until the table fits.
    """
    for heading in spare:
        if Measurement.get(console, console.options.update(max_width=1000), table).maximum <= console.width:
            break
        kept = [column for column in table.columns if column.header != heading]
        table = copy(table)
        table.columns = [replace(column, _index=index) for index, column in enumerate(kept)]
    return table


class RowTable:
    """A table with one line for each method, in groups by budget. It shows a plan's rows or a run's cells.

    `measured` are the headings of further columns.
    """

    def __init__(self, title: str, *measured: str) -> None:
        numbers = ("params", "% LoRA", "budget", *measured)
        # A seed's failures are words, which may continue on the next line.
        unbroken = [heading for heading in ("ranks", *numbers) if heading != "seeds"]
        self.table = plain_table(title, "method", "ranks", *numbers, texts=("ranks",), unbroken=unbroken)
        self.table.columns[0].min_width = 15
        self._block: str | None = ""

    def add(self, row: Row | Cell, *measured: str) -> None:
        if row.budget != self._block:
            self.table.add_row(f"[bold]{row.budget or OWN_SIZE}[/bold]")
            self._block = row.budget
        # Ranks that training cuts differ between seeds.
        ranks = joined(row.ranks) if isinstance(row, Row) else "cut" if row.left else row.ranks
        ratio = "–" if row.ratio is None else f"{row.ratio:.3f}" + " !" * (row.within is False)
        texts = row_texts(row, ranks)
        sizes = (texts[column] for column in ("ranks", "params", "% LoRA"))
        self.table.add_row(escape(row.method), *sizes, ratio, *measured)


def print_missed(console: Console, rows: int) -> None:
    if rows:
        console.print(
            f"[yellow]{rows} row(s) marked ! miss their budget by more than its tolerance.[/yellow]"
        )


def print_warnings(console: Console, warnings: Iterable[str]) -> None:
    for warning in warnings:
        console.print(f"[yellow]{escape(warning)}[/yellow]", highlight=False)


def each_of(registry: Registry, show: Callable[[str, Any], Shown]) -> Iterator[Shown]:
    """Calls `show` with each name of a registry and the class or object of that name, and yields the results.

    A plug-in for which this fails is skipped with a warning.
    """
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


def duration(seconds: float) -> str:
    """Formats a number of seconds, as in `2 h 05 m`, `3 m 20 s` or `7 s`."""
    rounded = round(seconds)
    if rounded >= 3600:
        return f"{rounded // 3600} h {rounded // 60 % 60:02} m"
    return f"{rounded // 60} m {rounded % 60:02} s" if rounded >= 60 else f"{rounded} s"


class TimeLeft(ProgressColumn):
    """A column with the remaining time, as in `3 m 20 s left`."""

    def render(self, task: Task) -> Text:
        seconds = None if task.finished else task.time_remaining
        return Text("" if seconds is None else f"{duration(seconds)} left", style="cyan")


def progress_bars(console: Console) -> Bars:
    """Makes progress bars with a description and the remaining time. Nothing is shown without a terminal."""
    return Bars(
        TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=console.width // 3),
        TimeLeft(table_column=Column(no_wrap=True, justify="right", min_width=11)),
        console=console,
        expand=True,
        transient=True,
        disable=not console.is_terminal,
        speed_estimate_period=PACE,
    )
