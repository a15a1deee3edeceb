"""The main tables of a report, and their formats Markdown and LaTeX.

A score is shown as mean ± standard deviation over seeds, in percent or in the unit of the targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from tensorbench.machine.visible import markdown_text, visible
from tensorbench.metrics import direction
from tensorbench.reports.analysis import Analysis, Block
from tensorbench.reports.findings import chance, on_part
from tensorbench.reports.headline import faults
from tensorbench.reports.inference.effects import Answer
from tensorbench.reports.recipes import Mixture
from tensorbench.reports.rendering import environment
from tensorbench.reports.study import OWN_SIZE, Cell, block_order, grouped, measured
from tensorbench.reports.units import unit_of
from tensorbench.reports.words import listed

#: The mark of a cell with missing seeds.
INCOMPLETE = "†"
#: The marks for verdicts on the size of a difference.
BETTER, WORSE, WITHIN = "↑", "↓", "≈"
MARKS = {
    BETTER: "better by more than the threshold",
    WORSE: "worse by more than it",
    WITHIN: "practically equivalent",
}
#: The largest number of lines of a table on one LaTeX page.
MOST_LINES = 40

Key = TypeVar("Key", int, str)


@dataclass(frozen=True)
class Entry:
    """One entry of the main table."""

    text: str
    #: 1 for the best mean of the block and column, 2 for the second best, otherwise None. Incomplete cells
    #: have no place.
    place: int | None = None
    #: The mark for the verdict on the difference from the reference: a key of `MARKS`, or empty.
    mark: str = ""


@dataclass(frozen=True)
class MainRow:
    """A method in one block of the main table."""

    method: str
    #: The number of adapter parameters in percent of LoRA's at rank 4.
    percent: float
    #: One entry per task column.
    entries: list[Entry]
    #: One mean over tasks for each metric in the table's `averages`.
    averages: list[Entry]


@dataclass(frozen=True)
class MainTable:
    """A table of scores on one backbone: a block per budget, a row per method, a column per task.

    Table 2 of the TensLoRA paper has the same form.
    """

    backbone: str
    #: The task of each column. A task that is scored by two metrics has two columns.
    tasks: list[str]
    #: The split, the metric and the unit of each column, as text.
    metrics: list[str]
    #: The metrics that several tasks share, except metrics in the unit of a task's targets. Each has a column
    #: with means over its tasks.
    averages: list[str]
    #: The rows of each budget.
    blocks: dict[str, list[MainRow]]
    #: Whether some cell of the table lacks finished seeds.
    incomplete: bool
    #: Whether some entry has a mark.
    marked: bool
    #: The name of the reference to which the marks refer.
    against: str
    #: The metrics with their units, as text. Empty if all scores are in percent.
    mixed: str = ""

    @property
    def columns(self) -> int:
        return 2 + len(self.tasks) + len(self.averages)

    @property
    def long(self) -> bool:
        """Whether the table exceeds a page."""
        return sum(1 + len(rows) for rows in self.blocks.values()) > MOST_LINES

    @property
    def legend(self) -> str:
        text = "Best mean of a block in bold, second underlined; neither claims a difference."
        if self.incomplete:
            text += f" {INCOMPLETE} seeds are missing; the mean is of those that are there."
        if self.marked:
            marks = ", ".join(f"{mark} {meaning}" for mark, meaning in MARKS.items())
            text += f" Against {self.against} over all settings of the metric: {marks}; otherwise undecided."
        return text


def main_tables(cells: Sequence[Cell], blocks: Sequence[Block] = ()) -> list[MainTable]:
    """Makes one table per backbone, with a block per budget.

    The order of budgets is isorank, isoparameters, other budgets, and fixed size last. `blocks` are the
    analysed blocks with these cells. Their verdicts are the marks of the tables. No entry is marked if there
    are no blocks, or if the report has several references.
    """
    marks = dict(mark for block in blocks if block.families == 1 for mark in _marks(block))
    against = next((block.reference.method for block in blocks if block.reference), "LoRA")
    by_backbone = grouped(cells, lambda cell: cell.backbone)
    return [_main_table(backbone, own, marks, against) for backbone, own in by_backbone.items()]


#: Marks by (budget, metric, task, method). The task is empty unless scores have the unit of its targets.
Marks = Mapping[tuple[str, str, str, str], str]


def _marks(block: Block) -> Iterator[tuple[tuple[str, str, str, str], str]]:
    for comparison in block.comparisons:
        answer, side = comparison.verdict.answer, comparison.verdict.side
        beyond = BETTER if side == "better" else WORSE
        mark = {Answer.BEYOND: beyond, Answer.WITHIN: WITHIN}.get(answer, "")
        yield (block.budget, block.metric, block.task, comparison.method), mark


#: A column of a table: the task and its metric. A task has several columns if it has several metrics.
Column = tuple[str, str]


def _main_table(backbone: str, cells: Sequence[Cell], marks: Marks, against: str) -> MainTable:
    # Cells without a run have no metric.
    first = {cell.task: cell.metric for cell in reversed(cells) if cell.metric}
    column_of = {cell.number: (cell.task, cell.metric or first.get(cell.task, "")) for cell in cells}
    by_column = grouped(cells, lambda cell: column_of[cell.number])
    by_budget = grouped(cells, lambda cell: cell.budget)
    # Scores in the units of different tasks have no mean.
    averaged = {
        metric: columns
        for metric, columns in grouped(by_column, lambda column: column[1]).items()
        if metric and len(columns) > 1 and unit_of(metric).mark
    }
    blocks = {
        budget: _rows(by_budget[budget], column_of, list(by_column), averaged, marks)
        for budget in sorted(by_budget, key=block_order)
    }
    entries = (entry for rows in blocks.values() for row in rows for entry in (*row.entries, *row.averages))
    return MainTable(
        backbone=backbone,
        tasks=[task for task, _ in by_column],
        metrics=[measured(own) for own in by_column.values()],
        averages=list(averaged),
        blocks=blocks,
        incomplete=not all(cell.complete for cell in cells),
        marked=any(entry.mark for entry in entries),
        against=against,
        mixed="" if all(unit_of(cell.metric).mark for cell in cells) else scales(cells),
    )


def scales(cells: Iterable[Cell]) -> str:
    """The splits, metrics and units of these cells' scores, as the beginning of a sentence.

    For example "Test accuracy in percent".
    """
    by_unit = grouped((cell for cell in cells if cell.metric), lambda cell: unit_of(cell.metric, cell.unit))
    parts = [
        f"{listed(dict.fromkeys(f'{cell.evaluated} {cell.metric}' for cell in own))} in "
        + ("percent" if unit.mark else unit.points)
        for unit, own in sorted(by_unit.items(), key=lambda pair: not pair[0].mark)
    ]
    text = "; ".join(parts) or "in percent"
    return text[:1].upper() + text[1:]


def _rows(
    cells: Sequence[Cell],
    column_of: Mapping[int, Column],
    columns: Sequence[Column],
    averaged: Mapping[str, Sequence[Column]],
    marks: Marks,
) -> list[MainRow]:
    """Makes the rows of one budget. If a metric has a column of averages, its marks are only there."""
    places: dict[int, int] = {}
    for own in grouped(cells, lambda cell: column_of[cell.number]).values():
        places |= _places({cell.number: _printed(cell.metric, cell.mean) for cell in own if cell.complete})
    by_method = grouped(cells, lambda cell: cell.method)
    on = {method: {column_of[cell.number]: cell for cell in own} for method, own in by_method.items()}
    averages = {metric: _averages(on, metric, columns_of) for metric, columns_of in averaged.items()}
    rows = []
    for method, own in by_method.items():
        budget = own[0].budget
        entries = []
        for column in columns:
            cell, (task, metric) = on[method].get(column), column
            if cell is None:
                entries.append(Entry("–"))
                continue
            key = (budget, metric, task if not unit_of(metric).mark else "", method)
            mark = marks.get(key, "") if cell.mean is not None and metric not in averaged else ""
            entries.append(Entry(score(cell), places.get(cell.number), mark))
        means = [
            replace(of_methods[method], mark=marks.get((budget, metric, "", method), ""))
            if method in of_methods
            else Entry("–")
            for metric, of_methods in averages.items()
        ]
        rows.append(MainRow(method, own[0].percent_of_lora, entries, means))
    return rows


def _averages(
    by_method: Mapping[str, Mapping[Column, Cell]], metric: str, columns: Sequence[Column]
) -> dict[str, Entry]:
    """The mean over these columns, for each method that has a score in all of them."""
    scored = {
        method: [on[column] for column in columns]
        for method, on in by_method.items()
        if all(column in on and on[column].mean is not None for column in columns)
    }
    means = {method: float(np.mean([cell.mean for cell in cells])) for method, cells in scored.items()}
    complete = {method for method, cells in scored.items() if all(cell.complete for cell in cells)}
    places = _places({method: _printed(metric, means[method]) for method in means if method in complete})
    return {
        method: Entry(f"{100 * mean:.2f}" + f" {INCOMPLETE}" * (method not in complete), places.get(method))
        for method, mean in means.items()
    }


def _printed(metric: str, mean: float | None) -> float | None:
    """The mean rounded as in print, so that equal numbers get equal places. Negated if smaller is better."""
    return None if mean is None else direction(metric) * float(unit_of(metric).score(mean))


def _places(means: Mapping[Key, float | None]) -> dict[Key, int]:
    """The first and second places among printed means, by key. Empty if there are fewer than two means."""
    printed = {key: mean for key, mean in means.items() if mean is not None}
    if len(printed) < 2:
        return {}
    best = sorted(set(printed.values()), reverse=True)[:2]
    return {key: best.index(mean) + 1 for key, mean in printed.items() if mean in best}


def score(cell: Cell) -> str:
    """The mean ± standard deviation of a cell as text, with the mark `INCOMPLETE` if seeds are missing."""
    if cell.mean is None:
        return f"– {INCOMPLETE}"
    unit = unit_of(cell.metric)
    text = unit.score(cell.mean)
    if cell.sd is not None:
        text += f" ± {unit.score(cell.sd)}"
    return text if cell.complete else f"{text} {INCOMPLETE}"


# --- text formats ---


def markdown(analysis: Analysis, mixtures: Sequence[Mixture]) -> str:
    """The main tables and the comparisons as Markdown."""
    tables = main_tables(analysis.study.all_cells, analysis.blocks)
    text = rendered(
        "tables.md",
        markdown_text,
        analysis=analysis,
        tables=tables,
        mixtures=mixtures,
        faults=faults(analysis),
        chance=chance,
        on_part=on_part,
    )
    return text.rstrip("\n") + "\n"


def latex(analysis: Analysis) -> str:
    r"""The main tables as LaTeX for `\input`.

    They need the package booktabs, and tables that exceed a page need longtable.
    """
    tables = main_tables(analysis.study.all_cells, analysis.blocks)
    return rendered("tables.tex", latex_text, LATEX_MARKS, tables=tables)


#: The delimiters in LaTeX templates. Jinja's own delimiters are braces and percent signs, which LaTeX uses.
LATEX_MARKS = {
    "block_start_string": "<%",
    "block_end_string": "%>",
    "variable_start_string": "<<",
    "variable_end_string": ">>",
    "comment_start_string": "<#",
    "comment_end_string": "#>",
}


def rendered(
    template: str, escape: Callable[[str], str], marks: Mapping[str, str] = {}, **values: object
) -> str:
    """Fills in a template of a text format with these values.

    `escape` is applied to each value in the text. A template exempts the result of a macro by
    `raw(macro())`. `marks` replaces Jinja's delimiters.
    """
    templates = environment(
        finalize=lambda value: value if isinstance(value, _Raw) else escape(str(value)),
        keep_trailing_newline=True,
        **marks,
    )
    templates.globals["raw"] = _Raw
    templates.filters |= {"block_title": _block_title, "unit": unit_of}
    return templates.get_template(template).render(values)


class _Raw(str):
    """Text that is already escaped."""


def _block_title(budget: str) -> str:
    return "Baselines and methods of fixed size" if budget == OWN_SIZE else budget


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "±": r"$\pm$",
    BETTER: r"$^\uparrow$",
    WORSE: r"$^\downarrow$",
    WITHIN: r"$^\approx$",
    "†": r"$^\dagger$",
    "–": "--",
    "·": r"$\cdot$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def latex_text(text: str) -> str:
    """Escapes a text so that LaTeX prints it as it is."""
    return "".join(_LATEX.get(character, character) for character in " ".join(visible(text).split()))
