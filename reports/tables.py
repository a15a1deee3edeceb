"""The main tables of a report, and the report as Markdown and LaTeX.

Scores are in percent or in the units of the targets, mean ± standard deviation over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from bench.metrics import direction
from bench.process.visible import markdown_text, visible
from reports.analysis import Analysis, Block
from reports.cautions import reference_failures, unbeaten
from reports.findings import chance, on_part
from reports.inference.effects import Answer
from reports.recipes import Mixture
from reports.rendering import environment
from reports.study import OWN_SIZE, Cell, block_order, grouped, measured
from reports.units import unit_of
from reports.words import listed

#: Shown where a cell lacks seeds.
INCOMPLETE = "†"
#: What a verdict says of a method, where it says something of the size.
BETTER, WORSE, WITHIN = "↑", "↓", "≈"
MARKS = {
    BETTER: "better beyond the threshold",
    WORSE: "worse beyond it",
    WITHIN: "within it",
}
#: Lines of a page of LaTeX that a table may take.
MOST_LINES = 40

Key = TypeVar("Key", int, str)


@dataclass(frozen=True)
class Entry:
    """One cell of the main table."""

    text: str
    #: 1 the best of its block and column, 2 the second; None for others, and for incomplete cells.
    place: int | None = None
    #: What is claimed against LoRA: one of `MARKS`, or nothing.
    mark: str = ""


@dataclass(frozen=True)
class MainRow:
    """A method in one block of the main table."""

    method: str
    #: Share of LoRA's parameters, in percent.
    percent: float
    #: One a task.
    entries: list[Entry]
    #: Means over the tasks of one metric, one for each of the table's `averages`.
    averages: list[Entry]


@dataclass(frozen=True)
class MainTable:
    """The paper's Table 2 on one backbone: a block a budget, a column a task."""

    backbone: str
    #: Of each column; twice where experiments score the task by two metrics.
    tasks: list[str]
    #: What is measured in each column, with its unit where that has a name.
    metrics: list[str]
    #: The metrics that several tasks have: each has a column of averages. No average is of two metrics.
    averages: list[str]
    #: Budget -> its rows.
    blocks: dict[str, list[MainRow]]
    incomplete: bool
    #: Whether any entry has a mark.
    marked: bool
    #: What the marks are against.
    against: str
    #: What the scores are, if not all in percent: metrics and their units.
    mixed: str = ""

    @property
    def columns(self) -> int:
        return 2 + len(self.tasks) + len(self.averages)

    @property
    def long(self) -> bool:
        """Whether it would pass a page."""
        return sum(1 + len(rows) for rows in self.blocks.values()) > MOST_LINES

    @property
    def legend(self) -> str:
        text = "Best mean of a block in bold, second underlined; neither claims a difference."
        if self.incomplete:
            text += f" {INCOMPLETE} seeds are missing; the mean is of those that are there."
        if self.marked:
            marks = ", ".join(f"{mark} {told}" for mark, told in MARKS.items())
            text += f" Against {self.against} over all settings of the metric: {marks}; otherwise undecided."
        return text


def main_tables(cells: Sequence[Cell], blocks: Sequence[Block] = ()) -> list[MainTable]:
    """A table a backbone: isorank, isoparameters, other budgets, then methods of their own size.

    `blocks` is what can be said of these cells; without any nothing is marked, nor where a method is compared
    with several references.
    """
    marks = dict(found for block in blocks if block.families == 1 for found in _marks(block))
    against = next((block.reference.method for block in blocks if block.reference), "LoRA")
    by_backbone = grouped(cells, lambda cell: cell.backbone)
    return [_main_table(backbone, some, marks, against) for backbone, some in by_backbone.items()]


#: Budget, metric, the task where the metric has that task's units or else nothing, method -> its mark.
Marks = Mapping[tuple[str, str, str, str], str]


def _marks(block: Block) -> Iterator[tuple[tuple[str, str, str, str], str]]:
    for found in block.comparisons:
        answer, side = found.verdict.answer, found.verdict.side
        beyond = BETTER if side == "better" else WORSE
        mark = {Answer.BEYOND: beyond, Answer.WITHIN: WITHIN}.get(answer, "")
        yield (block.budget, block.metric, block.task, found.method), mark


#: A task and what it is scored by: a task that several experiments score otherwise has several columns.
Column = tuple[str, str]


def _main_table(backbone: str, cells: Sequence[Cell], marks: Marks, against: str) -> MainTable:
    # What has not run has told no metric.
    first = {cell.task: cell.metric for cell in reversed(cells) if cell.metric}
    column_of = {cell.number: (cell.task, cell.metric or first.get(cell.task, "")) for cell in cells}
    by_column = grouped(cells, lambda cell: column_of[cell.number])
    by_budget = grouped(cells, lambda cell: cell.budget)
    of_metric = grouped(by_column, lambda column: column[1])
    # The units of two tasks' targets have no mean.
    averaged = {
        metric: columns
        for metric, columns in of_metric.items()
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
        metrics=[measured(some) for some in by_column.values()],
        averages=list(averaged),
        blocks=blocks,
        incomplete=not all(cell.complete for cell in cells),
        marked=any(entry.mark for entry in entries),
        against=against,
        mixed="" if all(unit_of(cell.metric).mark for cell in cells) else scales(cells),
    )


def scales(cells: Iterable[Cell]) -> str:
    """What the scores of cells are: splits, metrics and their units, as the beginning of a sentence."""
    scored = [cell for cell in cells if cell.metric]
    of_unit = grouped(scored, lambda cell: unit_of(cell.metric, cell.unit))
    told = [
        f"{listed(dict.fromkeys(f'{cell.evaluated} {cell.metric}' for cell in some))} in "
        + ("percent" if unit.mark else unit.points)
        for unit, some in sorted(of_unit.items(), key=lambda pair: not pair[0].mark)
    ]
    text = "; ".join(told) or "in percent"
    return text[:1].upper() + text[1:]


def _rows(
    cells: Sequence[Cell],
    column_of: Mapping[int, Column],
    columns: Sequence[Column],
    averaged: Mapping[str, Sequence[Column]],
    marks: Marks,
) -> list[MainRow]:
    """The rows of one budget. A mark is of all tasks of a metric, and stands in their average."""
    places: dict[int, int] = {}
    for some in grouped(cells, lambda cell: column_of[cell.number]).values():
        places |= _places({cell.number: _printed(cell.metric, cell.mean) for cell in some if cell.complete})
    by_method = grouped(cells, lambda cell: cell.method)
    on = {method: {column_of[cell.number]: cell for cell in some} for method, some in by_method.items()}
    averages = {metric: _averages(on, metric, some) for metric, some in averaged.items()}
    rows = []
    for method, some in by_method.items():
        budget = some[0].budget
        entries = []
        for task, metric in columns:
            known = on[method].get((task, metric))
            if known is None:
                entries.append(Entry("–"))
                continue
            of = task if not unit_of(metric).mark else ""
            claims = known.mean is not None and metric not in averaged
            mark = marks.get((budget, metric, of, method), "") if claims else ""
            entries.append(Entry(score(known), places.get(known.number), mark))
        of_metrics = [
            replace(found[method], mark=marks.get((budget, metric, "", method), ""))
            if method in found
            else Entry("–")
            for metric, found in averages.items()
        ]
        rows.append(MainRow(method, some[0].percent_of_lora, entries, of_metrics))
    return rows


def _averages(
    by_method: Mapping[str, Mapping[Column, Cell]], metric: str, columns: Sequence[Column]
) -> dict[str, Entry]:
    """The mean over these columns, of each method that has a score in all of them."""
    means: dict[str, float] = {}
    short = set()
    for method, on in by_method.items():
        found = [on[column] for column in columns if column in on and on[column].mean is not None]
        if len(found) == len(columns):
            means[method] = float(np.mean([cell.mean for cell in found]))
            if not all(cell.complete for cell in found):
                short.add(method)
    places = _places(
        {method: _printed(metric, mean) for method, mean in means.items() if method not in short}
    )
    return {
        method: Entry(f"{100 * mean:.2f}" + f" {INCOMPLETE}" * (method in short), places.get(method))
        for method, mean in means.items()
    }


def _printed(metric: str, mean: float | None) -> float | None:
    """A mean as it is printed, so that equal figures are marked alike; with its sign turned where less is
    better.
    """
    return None if mean is None else direction(metric) * float(unit_of(metric).score(mean))


def _places(means: Mapping[Key, float | None]) -> dict[Key, int]:
    """First and second of what `_printed` gave."""
    shown = {key: mean for key, mean in means.items() if mean is not None}
    if len(shown) < 2:
        return {}
    best = sorted(set(shown.values()), reverse=True)[:2]
    return {key: best.index(value) + 1 for key, value in shown.items() if value in best}


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
    tables = main_tables(analysis.study.all_cells, analysis.blocks)
    text = rendered(
        "tables.md",
        markdown_text,
        analysis=analysis,
        tables=tables,
        mixtures=mixtures,
        failures=reference_failures(analysis),
        unbeaten=unbeaten(analysis.study.all_cells),
        chance=chance,
        on_part=on_part,
    )
    return text.rstrip("\n") + "\n"


def latex(analysis: Analysis) -> str:
    r"""The main tables for `\input`; needs the package booktabs, and longtable where one passes a page."""
    tables = main_tables(analysis.study.all_cells, analysis.blocks)
    return rendered("tables.tex", latex_text, LATEX_MARKS, tables=tables)


#: What marks the template's own words there: braces and percent signs are LaTeX's.
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
    """A template filled in, every value escaped but for what a macro of it has made: `raw(macro())`."""
    made = environment(
        finalize=lambda value: value if isinstance(value, _Raw) else escape(str(value)),
        keep_trailing_newline=True,
        **marks,
    )
    made.globals["raw"] = _Raw
    made.filters |= {"block_title": _block_title, "unit": unit_of}
    return made.get_template(template).render(values)


class _Raw(str):
    """Text that is escaped already."""


def _block_title(budget: str) -> str:
    return "Baselines and methods of their own size" if budget == OWN_SIZE else budget


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
    """Text without meaning to LaTeX."""
    return "".join(_LATEX.get(character, character) for character in " ".join(visible(text).split()))
