"""Tables of plans and results, for terminals, notebooks, pages and files."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Self

from tensorbench.machine.visible import markdown_text, visible
from tensorbench.methods.errors import cut

#: The largest number of lines of a table, and of characters in a cell, in a notebook and at the prompt.
MOST_LINES, MOST_LETTERS = 60, 80
#: The largest number of lines of a table on one LaTeX page.
MOST_ON_PAGE = 40
#: The text of a cell without a value.
NOTHING = "–"


class Entry(str):
    """The text of a cell that a page shows in another form: in two parts, as a link, or in a style."""

    #: The text on a page, and a smaller text beneath it.
    shown: str
    beneath: str
    #: The classes of the page's style sheet.
    style: str
    #: The address to which the text leads, and the id to which links may lead. Both may be empty.
    link: str
    anchor: str

    def __new__(
        cls,
        text: str,
        shown: str = "",
        beneath: str = "",
        *,
        style: str = "",
        link: str = "",
        anchor: str = "",
    ) -> Self:
        """Makes a cell. A page shows `shown` in place of `text`, unless `shown` is empty."""
        entry = super().__new__(cls, text)
        entry.shown, entry.beneath, entry.style = shown or text, beneath, style
        entry.link, entry.anchor = link, anchor
        return entry


@dataclass(frozen=True)
class Table:
    """A table with a title and notes. All texts are untrusted, and are escaped when they are shown.

    A cell is a text, or a number that `csv` and `json` keep as it is. None is an empty cell.
    """

    title: str
    #: The cells of each line, by the name of their column. Lines may lack columns.
    lines: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()
    #: The names of columns that are aligned to the left, since they hold texts. All others hold numbers.
    texts: Sequence[str] = ()
    #: The names of all columns in order. By default, all columns that occur in the lines.
    columns: Sequence[str] = field(default=())
    #: The columns that a narrow terminal leaves out, the first one first.
    spare: Sequence[str] = ()
    #: Columns that a terminal shows once above the lines that share their contents: the last one in a line of
    #: its own, the others as a title.
    by: Sequence[str] = ()
    #: The values of the lines for programs. Empty if the cells themselves are values.
    values: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        if not self.columns:
            object.__setattr__(
                self, "columns", tuple(dict.fromkeys(name for line in self.lines for name in line))
            )

    def text(self) -> str:
        """Returns the table as plain text with aligned columns."""
        table = self._cells(_line, MOST_LINES)
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        aligned = [
            "  ".join(
                cell.ljust(width) if column in self.texts else cell.rjust(width)
                for column, cell, width in zip(self.columns, line, widths, strict=True)
            ).rstrip()
            for line in table
        ]
        return "\n".join([_line(self.title), *aligned, *map(_line, self._notes(MOST_LINES))])

    def html(self) -> str:
        """Returns the table as an HTML element, with at most `MOST_LINES` lines."""
        heads, *lines = self._cells(_line, MOST_LINES)

        def row(tag: str, cells: Sequence[str]) -> str:
            styled = (
                f'<{tag} style="text-align: {side}; white-space: nowrap">{escape(cell)}</{tag}>'
                for side, cell in zip(self._sides("left", "right"), cells, strict=True)
            )
            return f"<tr>{''.join(styled)}</tr>"

        body = "".join(row("td", line) for line in lines)
        table = f"<table><thead>{row('th', heads)}</thead><tbody>{body}</tbody></table>" * bool(lines)
        notes = "".join(f"<p>{escape(_line(note))}</p>" for note in self._notes(MOST_LINES))
        return f"<div><p><b>{escape(_line(self.title))}</b></p>{table}{notes}</div>"

    def on_page(self, style: str = "", most: int | None = None) -> str:
        """Returns the table as an HTML element of a page. `style` names classes of the page's style sheet.

        It has no title, since the page has headings. Lines after the first `most` are counted in a note.
        """

        def cell(tag: str, name: str, value: Any) -> str:
            entry = value if isinstance(value, Entry) else Entry(cell_text(value))
            classes = " ".join(filter(None, [entry.style, "" if name in self.texts else "n"]))
            # Sorting reads the attribute where a cell has more than its text.
            attributes = {"id": entry.anchor, "class": classes, "data-v": entry.shown * bool(entry.beneath)}
            text = escape(_line(entry.shown))
            if entry.link:
                text = f'<a href="{escape(visible(entry.link))}">{text}</a>'
            if entry.beneath:
                text += f"<small>{escape(_line(entry.beneath))}</small>"
            given = "".join(f' {key}="{escape(_line(each))}"' for key, each in attributes.items() if each)
            return f"<{tag}{given}>{text}</{tag.split()[0]}>"

        heads = "".join(cell('th scope="col"', name, Entry(name)) for name in self.columns)
        row, (first, *rest) = 'th scope="row"', self.columns
        body = "".join(
            f"<tr>{cell(row, first, line.get(first))}"
            f"{''.join(cell('td', name, line.get(name)) for name in rest)}</tr>\n"
            for line in self.lines[:most]
        )
        notes = "".join(f'<p class="quiet">{escape(_line(note))}</p>' for note in self._notes(most))
        return f'<table class="{style}"><thead><tr>{heads}</tr></thead><tbody>\n{body}</tbody></table>{notes}'

    def markdown(self) -> str:
        """Returns the table as Markdown, with its notes below it."""
        heads, *lines = self._cells(markdown_text)
        rules = self._sides("---", "---:")
        table = [f"| {' | '.join(cells)} |" for cells in (heads, rules, *lines)]
        return "\n".join(table + [f"\n{markdown_text(note)}" for note in self.notes])

    def latex(self) -> str:
        r"""Returns the table as LaTeX for `\input`, with the title and the notes as its caption.

        It needs the package booktabs, and longtable if it exceeds a page.
        """
        heads, *lines = self._cells(latex_text)
        long = len(lines) > MOST_ON_PAGE
        name = "longtable" if long else "tabular"
        # After a row's end, [ and * would be options of it.
        rows = [
            ("{}" if cells[0].startswith(("[", "*")) else "") + " & ".join(cells) + r" \\" for cells in lines
        ]
        head = [r"\toprule", " & ".join(heads) + r" \\", r"\midrule"]
        caption = rf"\caption{{{latex_text(' '.join([self.title + ':' * bool(self.notes), *self.notes]))}}}"
        begin = rf"\begin{{{name}}}{{{''.join(self._sides('l', 'r'))}}}"
        content = [*head, *([r"\endhead"] if long else []), *rows, r"\bottomrule"]
        if long:
            text = [begin, caption + r" \\", *content, r"\end{longtable}"]
        else:
            text = [
                r"\begin{table}",
                r"\centering",
                caption,
                begin,
                *content,
                r"\end{tabular}",
                r"\end{table}",
            ]
        needs = "booktabs,longtable" if long else "booktabs"
        return "\n".join([rf"% needs \usepackage{{{needs}}}", *text]) + "\n"

    def csv(self) -> str:
        """Returns the lines as CSV.

        A text that a spreadsheet would take for a formula gets a leading quote.
        """
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([_no_formula(line.get(name)) for name in self.columns] for line in self.lines)
        return file.getvalue()

    def records(self) -> list[dict[str, Any]]:
        """Returns `values` or, if there are none, the lines as JSON values.

        NaN and infinities become None.
        """
        lines = self.values or ({name: line.get(name) for name in self.columns} for line in self.lines)
        return [{name: None if _unknown(value) else value for name, value in line.items()} for line in lines]

    def json(self) -> str:
        """Returns the title, the lines and the notes as JSON."""
        content = {"title": self.title, "lines": self.records(), "notes": list(self.notes)}
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def _cells(self, shown: Callable[[str], str], most: int | None = None) -> list[list[str]]:
        """Returns the names of the columns, then the cells of the first lines, at most `most` of them."""
        lines = [[cell_text(line.get(name)) for name in self.columns] for line in self.lines[:most]]
        limit = (lambda text: cut(text, MOST_LETTERS)) if most else str
        return [list(map(shown, self.columns)), *([limit(shown(cell)) for cell in line] for line in lines)]

    def _sides(self, left: str, right: str) -> list[str]:
        return [left if name in self.texts else right for name in self.columns]

    def _notes(self, most: int | None) -> list[str]:
        left_out = len(self.lines) - (len(self.lines) if most is None else most)
        return [f"{left_out:,} more lines.", *self.notes] if left_out > 0 else list(self.notes)


def _unknown(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def cell_text(value: Any) -> str:
    """Returns the text of a cell. Floats have six significant digits, integers commas between thousands."""
    if isinstance(value, str | bool):
        return str(value)
    if value is None or value != value:
        return NOTHING
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def duration(seconds: float) -> str:
    """Returns a time in words, in the largest unit that gives at least two."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _line(text: str) -> str:
    """Escapes an untrusted text and puts it on one line."""
    return " ".join(visible(text).split())


def _no_formula(value: Any) -> Any:
    if value is None or value != value:
        return ""
    if not isinstance(value, str):
        return value
    # Not every writer quotes carriage returns, and the rest of the text would become another row.
    text = re.sub(r"\r\n?", "\n", value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\n")) else text


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "±": r"$\pm$",
    "−": r"$-$",
    "†": r"$^\dagger$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "–": "--",
    "·": r"$\cdot$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def latex_text(text: str) -> str:
    """Escapes a text so that LaTeX prints it as it is."""
    return "".join(_LATEX.get(character, character) for character in _line(text))


class ShowsOverview:
    """Base of objects that notebooks and the Python prompt show as a table."""

    def overview(self) -> Table:
        """Returns the table that shows this object."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.overview().text()

    def __str__(self) -> str:
        return self.overview().text()

    def _repr_html_(self) -> str:
        return self.overview().html()
