"""The main tables of a report, and the report as Markdown and LaTeX.

Scores are in percent or in the units of the targets, mean ± standard deviation over seeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.metrics import direction
from bench.process.visible import visible
from reports.analysis import Analysis
from reports.mixtures import Mixture
from reports.rendering import environment
from reports.study import OWN_SIZE, Cell, block_order, grouped
from reports.units import unit_of

#: Shown where a cell lacks seeds.
INCOMPLETE = "†"


@dataclass(frozen=True)
class Entry:
    """One cell of the main table."""

    text: str
    #: 1 the best of its block and column, 2 the second; None for others, and for incomplete cells.
    place: int | None = None


@dataclass(frozen=True)
class TableRow:
    """A method in one block of the main table."""

    method: str
    #: Share of LoRA's parameters, in percent.
    percent: float
    #: One a task.
    entries: list[Entry]


@dataclass(frozen=True)
class MainTable:
    """The paper's Table 2 on one backbone: a block a budget, a column a task."""

    backbone: str
    tasks: list[str]
    #: What is measured on each task.
    metrics: list[str]
    #: Budget -> its rows.
    blocks: dict[str, list[TableRow]]
    incomplete: bool
    #: Whether all scores are in percent; others are in the units of their targets.
    percent: bool = True

    @property
    def legend(self) -> str:
        text = "Best mean of a block in bold, second underlined; neither claims a difference."
        return text + (
            f" {INCOMPLETE} seeds are missing; the mean is of those that are there."
            if self.incomplete
            else ""
        )


def main_tables(cells: Sequence[Cell]) -> list[MainTable]:
    """A table a backbone: isorank, isoparameters, other budgets, then methods of their own size."""
    by_backbone = grouped(cells, lambda cell: cell.backbone)
    return [_main_table(backbone, some) for backbone, some in by_backbone.items()]


def _main_table(backbone: str, cells: Sequence[Cell]) -> MainTable:
    by_task = grouped(cells, lambda cell: cell.task)
    by_budget = grouped(cells, lambda cell: cell.budget)
    return MainTable(
        backbone=backbone,
        tasks=list(by_task),
        metrics=[_metric(some) for some in by_task.values()],
        percent=all(unit_of(cell.metric).mark for cell in cells),
        blocks={
            budget: _rows(by_budget[budget], list(by_task)) for budget in sorted(by_budget, key=block_order)
        },
        incomplete=not all(cell.complete for cell in cells),
    )


def _metric(cells: Sequence[Cell]) -> str:
    return next((f"{cell.evaluated} {cell.metric}" for cell in cells if cell.metric), "no result")


def _rows(cells: Sequence[Cell], tasks: Sequence[str]) -> list[TableRow]:
    """The rows of one budget."""
    places: dict[int, int] = {}
    for of_task in grouped(cells, lambda cell: cell.task).values():
        places |= _places(of_task)
    rows = []
    for method, some in grouped(cells, lambda cell: cell.method).items():
        on = {cell.task: cell for cell in some}
        entries = [
            Entry(score(on[task]), places.get(on[task].number)) if task in on else Entry("–")
            for task in tasks
        ]
        rows.append(TableRow(method, some[0].percent_of_lora, entries))
    return rows


def _places(cells: Sequence[Cell]) -> dict[int, int]:
    """First and second by what is printed, so that equal figures are marked alike."""
    shown = {
        cell.number: direction(cell.metric) * float(unit_of(cell.metric).score(cell.mean))
        for cell in cells
        if cell.complete and cell.mean is not None
    }
    if len(shown) < 2:
        return {}
    best = sorted(set(shown.values()), reverse=True)[:2]
    return {number: best.index(value) + 1 for number, value in shown.items() if value in best}


def score(cell: Cell) -> str:
    """Mean ± standard deviation, with what is missing."""
    if cell.mean is None:
        return f"– {INCOMPLETE}"
    unit = unit_of(cell.metric)
    text = unit.score(cell.mean)
    if cell.sd is not None:
        text += f" ± {unit.score(cell.sd)}"
    return text if cell.complete else f"{text} {INCOMPLETE}"


# --- text formats ---


def markdown(analysis: Analysis, mixtures: Sequence[Mixture]) -> str:
    """The main tables and the comparisons."""
    tables = main_tables(analysis.study.all_cells)
    text = _rendered("tables.md", markdown_text, analysis=analysis, tables=tables, mixtures=mixtures)
    return text.rstrip("\n") + "\n"


def latex(analysis: Analysis) -> str:
    r"""The main tables for `\input`; needs the package booktabs."""
    return _rendered("tables.tex", latex_text, _LATEX_MARKS, tables=main_tables(analysis.study.all_cells))


#: What marks the template's own words there: braces and percent signs are LaTeX's.
_LATEX_MARKS = {
    "block_start_string": "<%",
    "block_end_string": "%>",
    "variable_start_string": "<<",
    "variable_end_string": ">>",
    "comment_start_string": "<#",
    "comment_end_string": "#>",
}


def _rendered(
    template: str, escape: Callable[[str], str], marks: Mapping[str, str] = {}, **values: object
) -> str:
    """A template filled in, every value escaped."""
    made = environment(finalize=lambda value: escape(str(value)), keep_trailing_newline=True, **marks)
    made.filters |= {"block_title": _block_title, "unit": unit_of}
    return made.get_template(template).render(values)


def _block_title(budget: str) -> str:
    return "Baselines and methods of their own size" if budget == OWN_SIZE else budget


def markdown_text(text: str) -> str:
    """Text without meaning to Markdown or HTML."""
    text = re.sub(r"([\\`*_\[\]|~])", r"\\\1", " ".join(visible(text).split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "–": "--",
    "·": r"$\cdot$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def latex_text(text: str) -> str:
    """Text without meaning to LaTeX."""
    return "".join(_LATEX.get(character, character) for character in " ".join(visible(text).split()))
