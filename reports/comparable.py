"""Finds the methods that are comparable, and the reference with which they are compared.

Methods are comparable if they have one budget, one metric and one recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from tensorbench.records.metrics import METRICS
from tensorbench.records.words import OWN_SIZE
from tensorbench.reports.recipes import (
    Differences,
    Recipe,
    alike,
    difference,
    differs,
    in_words,
    without_ranks,
)
from tensorbench.reports.results import NO_ADAPTERS, REFERENCE, Cell, Results, grouped
from tensorbench.reports.units import listed


@dataclass(frozen=True)
class Comparable:
    """Methods of one budget with one metric and one recipe."""

    #: The budget's name. If the budget has several metrics, the metric follows, with the task if `task` names
    #: one. If the recipe is not the first, its number follows, for example "isorank 4 · recipe 2".
    title: str
    metric: str
    #: The only task, if the metric has the unit of the task's targets. Empty for all other metrics, since
    #: several tasks may share them.
    task: str
    methods: Mapping[str, Sequence[Cell]]
    #: A note that these methods have another recipe than the largest group of this budget and metric. Empty
    #: for the largest group.
    note: str

    @property
    def cells(self) -> list[Cell]:
        return [cell for cells in self.methods.values() for cell in cells]


def comparable(
    results: Results, budget: str, cells: Sequence[Cell], of_cells: Mapping[int, Recipe]
) -> Iterator[Comparable]:
    """Yields the methods of a budget in groups with one metric and one recipe.

    The largest group of a metric comes first. `cells` are the cells of the budget. `of_cells` has the recipe
    of each cell, by the cell's number.
    """
    by_metric = grouped(cells, lambda cell: measured(results.metrics[cell.number], cell.task))
    for (metric, task), of_metric in by_metric.items():
        first, *rest = alike(of_cells, grouped(of_metric, lambda cell: cell.method))
        for number, group in enumerate((first, *rest), 1):
            parts = [
                budget,
                *([f"{metric} on {task}" if task else metric] if len(by_metric) > 1 else []),
                *([f"recipe {number}"] if number > 1 else []),
            ]
            title = " · ".join(part for part in parts if part)
            note = ""
            if number > 1:
                words = in_words(differs(of_cells, chain.from_iterable(group.values()), first))
                note = (
                    f"Run with another recipe than {listed(list(first)[:3])} ({words}): shown apart, and no "
                    "verdict compares them."
                )
            yield Comparable(title, metric, task, group, note)


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


@dataclass(frozen=True)
class Reference:
    """The method with which the other methods of a block are compared."""

    method: str
    #: The budget of the reference's cells. It differs from the block's budget if the reference was not run
    #: under the block's budget.
    budget: str
    #: The numbers of the reference's cells, one per setting.
    cells: tuple[int, ...]


def find_reference(
    results: Results, budget: str, cells: Sequence[Cell], of_cells: Mapping[int, Recipe]
) -> tuple[Reference | None, list[str]]:
    """Finds the reference for a budget: LoRA or the user's choice, with the same recipes and settings.

    Returns the reference and one note, or None and a note that says why there is no reference. The note on a
    reference names its budget if that is not `budget`; otherwise it is empty.

    A budget that has LoRA uses its own: plain LoRA (without options) if possible, otherwise a variant. Other
    budgets, and methods of fixed size, use the plain LoRA of the first budget that has it, or else a variant.
    All trials of a tuned reference may have failed, since studies give failed trials a score.

    Without LoRA, if all adapters are allocations of ranks of one method, the heuristic one is the reference.

    Args:
        cells: The cells of one method. On each of their settings, the reference must have a run with the same
            recipe.
        of_cells: The recipe of every cell, by the cell's number.
    """
    named = results.reference
    recipe = {cell.setting: of_cells[cell.number] for cell in cells}
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
            if not all(setting in on for setting in recipe):
                continue
            differs: Differences = {}
            for setting, own_recipe in recipe.items():
                differs |= difference(of_cells[on[setting].number], own_recipe)
            if not differs:
                other = place != budget and len({*budgets} - {OWN_SIZE}) > 1
                note = f"The reference is {method} under another budget, {place}." if other else ""
                return Reference(method, place, tuple(on[setting].number for setting in recipe)), [note]
            rejected = rejected or differs
        # A budget with its own LoRA uses no other.
        if of_budget and place == budget != OWN_SIZE and candidates is lora:
            break
    name = named or "LoRA"
    why = f"{name} ran with another recipe ({in_words(rejected)})" if rejected else ""
    why = why or f"No {name} among these methods has finished runs on all settings of this budget"
    return None, [f"{why}: nothing is compared with it."]


def heuristic(results: Results, budget: str) -> list[Cell]:
    """The cells with the heuristic's ranks, if all adapters under a budget are allocations of one method.

    Otherwise the list is empty.
    """
    cells = [c for c in results.all_cells if c.budget == budget and c.family not in NO_ADAPTERS]
    of_cells = without_ranks(results)
    if not all("," in cell.rank_names for cell in cells) or len({of_cells.get(c.number) for c in cells}) != 1:
        return []
    return [cell for cell in cells if not cell.allocation]
