"""Finds the methods that are comparable, and the reference with which they are compared.

Methods are comparable if they have one budget, one metric and one recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from tensorbench.records.metrics import METRICS
from tensorbench.records.words import OWN_SIZE
from tensorbench.reports.recipes import (
    Differences,
    Methods,
    alike,
    difference,
    differs,
    in_words,
    without_ranks,
)
from tensorbench.reports.results import NO_ADAPTERS, REFERENCE, Cell, Results, grouped
from tensorbench.reports.units import listed


class Comparable(NamedTuple):
    """Methods of one budget with one metric and one recipe."""

    #: The budget's name. If the budget has several metrics, the metric follows, with the task if its scores
    #: have the unit of the task's targets. If some of the budget's cells have studies and others have not,
    #: "studies" or "seeds" follows. If the recipe is not the first, its number follows, for example
    #: "isorank 4 · recipe 2".
    title: str
    metric: str
    methods: Methods
    #: A note that these methods have another recipe than the largest group of this budget and metric on the
    #: same settings. Empty for the largest group.
    note: str


def comparable(results: Results, budget: str, cells: Sequence[Cell]) -> Iterator[Comparable]:
    """Yields the methods of a budget, whose cells are `cells`, in groups with one metric and one recipe.

    Cells with studies are apart from those with seeds alone. The largest group of either comes first.
    """
    by_metric = grouped(
        cells,
        lambda cell: (*measured(results.metrics[cell.number], cell.task), cell.studies is not None),
    )
    metrics, tunings = {key[:2] for key in by_metric}, {key[2] for key in by_metric}
    largest: dict[tuple[str, str], Methods] = {}
    for (metric, task, tuned), of_metric in by_metric.items():
        first, *rest = alike(grouped(of_metric, lambda cell: cell.method))
        for number, group in enumerate((first, *rest), 1):
            parts = [
                budget,
                *([f"{metric} on {task}" if task else metric] if len(metrics) > 1 else []),
                *(["studies" if tuned else "seeds"] if len(tunings) > 1 else []),
                *([f"recipe {number}"] if number > 1 else []),
            ]
            title = " · ".join(part for part in parts if part)
            note, other = "", largest.setdefault((metric, task), first) if number == 1 else first
            if differences := differs(chain.from_iterable(group.values()), other):
                note = (
                    f"Run with another recipe than {listed(list(other)[:3])} ({in_words(differences)}): "
                    "shown apart, and no verdict compares them."
                )
            yield Comparable(title, metric, group, note)


def measured(metric: str, task: str) -> tuple[str, str]:
    """Returns the metric and the task. The task is empty unless scores have the unit of its targets."""
    return metric, task if metric and METRICS.get(metric).in_units else ""


def block_budgets(budgets: Iterable[str]) -> dict[str, str]:
    """Maps each budget to the budget under which its methods are compared.

    Every budget is mapped to itself, with one exception: if methods of fixed size occur beside exactly one
    budget, they are compared under that budget. One comparison then answers which method to use.
    """
    every = set(budgets)
    sized = every - {OWN_SIZE}
    own = next(iter(sized)) if len(sized) == 1 else OWN_SIZE
    return {budget: own if budget == OWN_SIZE else budget for budget in every}


def find_reference(results: Results, budget: str, cells: Sequence[Cell]) -> tuple[list[Cell], list[str]]:
    """Finds the reference for a budget: LoRA or the user's choice, with the settings and recipes of `cells`.

    `cells` are those of one method. Returns the reference's cell on each of their settings, and one note.
    Without a reference there is no cell, and the note says why. The note on a reference names its budget if
    that is not `budget`; otherwise it is empty.

    A budget that has LoRA uses its own: plain LoRA (without options) if possible, otherwise a variant. Other
    budgets, and methods of fixed size, use the plain LoRA of the first budget that has it, or else a variant.
    All trials of a tuned reference may have failed, since studies give failed trials a score.

    Without LoRA, if all adapters are allocations of ranks of one method, the heuristic one is the reference.
    """
    named = results.reference
    lora = [
        cell for cell in results.all_cells if (cell.method == named if named else cell.family == REFERENCE)
    ]
    plain = [cell for cell in lora if named or cell.method == cell.title]
    if not (lora or named):
        plain = lora = heuristic(results, budget)
    budgets = [budget, *dict.fromkeys(cell.budget for cell in results.all_cells)]
    own = [(budget, plain), (budget, lora)] if budget != OWN_SIZE else []
    order = own + [(other, candidates) for candidates in (plain, lora) for other in budgets]
    rejected: Differences = {}
    for place, candidates in order:
        of_budget = [cell for cell in candidates if cell.budget == place]
        for method, of_method in grouped(of_budget, lambda cell: cell.method).items():
            on = {c.setting: c for c in of_method if c.finished or (c.studies and c.failed)}
            if not all(cell.setting in on for cell in cells):
                continue
            differs: Differences = {}
            for cell in cells:
                differs |= difference(on[cell.setting].recipe, cell.recipe)
            if not differs:
                other = place != budget and len({*budgets} - {OWN_SIZE}) > 1
                note = f"The reference is {method} under another budget, {place}." if other else ""
                return [on[cell.setting] for cell in cells], [note]
            rejected = rejected or differs
        # A budget with its own LoRA uses no other.
        if of_budget and place == budget != OWN_SIZE and candidates is lora:
            break
    name = named or "LoRA"
    why = f"{name} ran with another recipe ({in_words(rejected)})" if rejected else ""
    why = why or f"No {name} among these methods has finished runs on all settings of this budget"
    return [], [f"{why}: nothing is compared with it."]


def heuristic(results: Results, budget: str) -> list[Cell]:
    """The cells with the heuristic's ranks, if all adapters under a budget are allocations of one method.

    Otherwise the list is empty.
    """
    cells = [c for c in results.all_cells if c.budget == budget and c.family not in NO_ADAPTERS]
    if not all("," in cell.rank_names for cell in cells) or len({*map(without_ranks, cells)}) != 1:
        return []
    return [cell for cell in cells if not cell.allocation]
