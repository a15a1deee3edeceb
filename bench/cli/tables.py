"""Prints tables, sentences, JSON and progress bars at the terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.segment import Segment
from rich.table import Column
from rich.table import Table as Grid
from rich.text import Text

from tensorbench.machine.table import Table, cell_text, duration
from tensorbench.machine.visible import visible

#: A line of a table.
Line = Mapping[str, Any]

#: The remaining time is estimated from the progress in this many past seconds.
PACE = 300.0
#: Texts of up to this many characters stay on one line, however narrow the terminal is.
UNBROKEN = 15
#: The colour of a text that contains a mark, by the mark.
COLOURS = {"✗": "red", "✓": "green"}


class VisibleConsole(Console):
    """A console that escapes control characters, so that no untrusted text controls the terminal.

    The control codes of rich itself pass unchanged.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(visible(text), style)

    def on_broken_pipe(self) -> None:
        """Stops printing when the reader of a pipe, such as `head`, has ended. The command continues."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def _width(terminal: bool) -> int | None:
    # None leaves the choice to rich.
    return None if terminal or os.environ.get("COLUMNS", "").isdigit() else 120


out = VisibleConsole(width=_width(sys.stdout.isatty()), emoji=False)
err = VisibleConsole(stderr=True, width=_width(sys.stderr.isatty()), emoji=False)


def say(*sentences: str, console: Console = out, style: str = "") -> None:
    """Prints untrusted sentences, each on its own line, which may be longer than the terminal is wide.

    Without a `style`, a sentence has the colour of the mark that it contains (see `COLOURS`).
    """
    for sentence in sentences:
        console.print(Text(sentence, style or _colour(sentence)), soft_wrap=True)


def echo_json(content: Any) -> None:
    from pydantic_core import to_jsonable_python

    # NaN is no JSON.
    typer.echo(json.dumps(to_jsonable_python(content, inf_nan_mode="null"), indent=1))


def print_tables(*tables: Table, console: Console = out) -> None:
    """Prints tables: the title of each, its lines in groups (see `Table.by`), and its notes.

    If the terminal is too narrow, columns in `Table.spare` are left out, and long texts continue on the next
    line.
    """
    for table in tables:
        if table.title:
            say(table.title, console=console, style="bold")
        _print_lines(table, console)
        say(*table.notes, console=console)


def _print_lines(table: Table, console: Console) -> None:
    *titles, _ = table.by or ("",)
    for title, lines in _grouped(table.lines, *titles).items():
        columns = [name for name in table.columns if name not in table.by]
        spare = [name for name in table.spare if name in columns]
        heads = _grouped(lines, *table.by[-1:])
        while (widths := _widths(table, columns, lines, heads, console.width)) is None and spare:
            columns.remove(spare.pop(0))
        headed = any(map(str.strip, columns))
        box = SIMPLE_HEAD if headed else None
        grid = Grid(box=box, show_header=headed, pad_edge=False, title_justify="left")
        grid.title = Text(" · ".join(title)) if title else None
        for index, name in enumerate(columns):
            side: JustifyMethod = "left" if name in table.texts else "right"
            width = widths[index] if widths else None
            grid.add_column(Text(visible(name)), justify=side, width=width, overflow="fold")
        for head, group in heads.items():
            if head:
                grid.add_row(Text(head[0], "bold"))
            for line in group:
                cells = [_cell(line, name) for name in columns]
                grid.add_row(*(Text(cell, _colour(cell)) for cell in cells))
        console.print(grid)


def _widths(
    table: Table, columns: Sequence[str], lines: Sequence[Line], heads: Iterable[tuple[str, ...]], width: int
) -> list[int] | None:
    """Returns column widths with which a table fits into `width` characters. None if there are none.

    Numbers and short texts stay on one line. Longer texts and headings continue on the next line.
    """
    least, most = [], []
    for name in columns:
        # The headings of groups of lines are in the first column.
        above = [text for head in heads for text in head] if name == columns[0] else []
        longest = max(map(cell_len, [*above, *(_cell(line, name) for line in lines)]))
        words = max(map(cell_len, visible(name).split()), default=0)
        least.append(max(words, min(longest, UNBROKEN) if name in table.texts else longest))
        most.append(max(longest, cell_len(visible(name))))
    # Three characters separate two columns.
    left = width - 3 * len(columns) + 1 - sum(least)
    if left < 0:
        return None
    while left and (growing := [i for i in range(len(columns)) if least[i] < most[i]]):
        least[min(growing, key=least.__getitem__)] += 1
        left -= 1
    return least


def _grouped(lines: Sequence[Line], *names: str) -> dict[tuple[str, ...], list[Line]]:
    """Groups lines that have equal cells in all columns `names`. Maps these cells to the lines."""
    groups: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        groups.setdefault(tuple(_cell(line, name) for name in names), []).append(line)
    return groups


def _cell(line: Line, name: str) -> str:
    # Escaped before it is measured.
    return visible(cell_text(line.get(name)))


def _colour(text: str) -> str:
    return next((colour for mark, colour in COLOURS.items() if mark in text), "")


class TimeLeft(ProgressColumn):
    """A column with the remaining time, as in `3 min left`."""

    def render(self, task: Task) -> Text:
        seconds = None if task.finished else task.time_remaining
        return Text("" if seconds is None else f"{duration(seconds)} left", style="cyan")


@contextmanager
def progress_line(doing: str) -> Iterator[Callable[..., None]]:
    """Makes a context with a progress bar, and yields a function that updates the bar.

    `doing` is the bar's description at first. The function takes the number of items done, the number of all
    items and, optionally, a new description.
    """
    with progress_bars(err) as bars:
        line = bars.add_task(doing, total=None)

        def notify(done: int, total: int, name: str = doing) -> None:
            bars.update(line, completed=done, total=total, description=escape(name))

        yield notify


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
