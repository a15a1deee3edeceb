"""Tables that summarise plans and results, in a notebook and at the Python prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from tensorbench.machine.visible import visible
from tensorbench.methods.errors import cut

#: The largest number of lines in a table, and of characters in a cell.
MOST_LINES, MOST_LETTERS = 60, 80


@dataclass(frozen=True)
class Overview:
    """A table with a title and notes. All texts are untrusted, and are escaped when they are shown."""

    title: str
    #: The cells of each line, by the name of their column. All lines have the same columns.
    lines: Sequence[Mapping[str, str]]
    notes: Sequence[str] = ()
    #: The names of columns that are aligned to the left, since they hold texts. All others hold numbers.
    texts: Sequence[str] = ()

    def text(self) -> str:
        """Returns the table as plain text with aligned columns."""
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        aligned = [
            "  ".join(
                cell.ljust(width) if column in self.texts else cell.rjust(width)
                for column, cell, width in zip(table[0], line, widths, strict=True)
            ).rstrip()
            for line in table
        ]
        return "\n".join([_line(self.title), *aligned, *map(_line, self._notes())])

    def html(self) -> str:
        """Returns the table as an HTML element for a notebook."""
        heads, *lines = self._table()
        sides = ["left" if head in self.texts else "right" for head in heads]

        def row(tag: str, cells: Sequence[str]) -> str:
            styled = (
                f'<{tag} style="text-align: {side}; white-space: nowrap">{escape(cell)}</{tag}>'
                for side, cell in zip(sides, cells, strict=True)
            )
            return f"<tr>{''.join(styled)}</tr>"

        body = "".join(row("td", line) for line in lines)
        table = f"<table><thead>{row('th', heads)}</thead><tbody>{body}</tbody></table>" * bool(lines)
        notes = "".join(f"<p>{escape(_line(note))}</p>" for note in self._notes())
        return f"<div><p><b>{escape(_line(self.title))}</b></p>{table}{notes}</div>"

    def _table(self) -> list[list[str]]:
        """Returns the names of the columns, then the cells of the first `MOST_LINES` lines."""
        heads = list(self.lines[0]) if self.lines else []
        lines = self.lines[:MOST_LINES]
        return [heads, *([cut(_line(cell), MOST_LETTERS) for cell in line.values()] for line in lines)]

    def _notes(self) -> list[str]:
        left_out = len(self.lines) - MOST_LINES
        return [f"{left_out:,} more lines.", *self.notes] if left_out > 0 else list(self.notes)


def _line(text: str) -> str:
    """Escapes an untrusted text and puts it on one line."""
    return " ".join(visible(text).split())


class ShowsOverview:
    """Base of objects that notebooks and the Python prompt show as a table."""

    def overview(self) -> Overview:
        """Returns the table that shows this object."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.overview().text()

    def __str__(self) -> str:
        return self.overview().text()

    def _repr_html_(self) -> str:
        return self.overview().html()
