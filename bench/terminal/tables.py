"""What the tables at the terminal share."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table


def fitted(console: Console, table: Table, *spare: str) -> Table:
    """The table, without columns of these headings while it is too wide, the first one first."""
    for heading in spare:
        if Measurement.get(console, console.options.update(max_width=1000), table).maximum <= console.width:
            break
        kept = [column for column in table.columns if column.header != heading]
        table.columns = [replace(column, _index=index) for index, column in enumerate(kept)]
    return table


def plain_table(title: str, *headings: str, texts: Collection[str] = ("mode",)) -> Table:
    """A table with these columns: the first and those in `texts` hold text, the others numbers."""
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in (headings[0], *texts) else "right")
    return table


class RowTable:
    """Rows of a plan or a summary, with a heading wherever the budget changes."""

    def __init__(self, title: str, measured: tuple[str, ...]) -> None:
        self.table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        self.table.add_column("method", min_width=15)
        self.table.add_column("ranks", no_wrap=True)
        for heading in ("params", "% LoRA", "budget", *measured):
            # A seed's failures are words, which may go on in the next line.
            self.table.add_column(heading, justify="right", no_wrap=heading != "seeds")
        self._block: str | None = ""

    def add(self, budget: str | None, row: dict[Any, Any], *measured: str) -> None:
        if budget != self._block:
            self.table.add_row(f"[bold]{budget or 'own size'}[/bold]")
            self._block = budget
        ranks = row["ranks"] if isinstance(row["ranks"], str) else joined(row["ranks"])
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.3f}" + " !" * (row["within"] is False)
        self.table.add_row(
            escape(row["method"]),
            ranks or "–",
            f"{row['parameters']:,}",
            f"{row['percent_of_lora']:.2f}",
            ratio,
            *measured,
        )


def joined(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))
