"""Comparisons of ranks: allocations of one budget with the heuristic, and methods under several budgets.

An allocation divides a budget among the modes of a method. It is a row in which the suite gives the ranks of
some modes. In a row without given ranks, the method's heuristic sets all ranks from the budget.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

import numpy as np

from tensorbench.records.words import OWN_SIZE
from tensorbench.reports.blocks import Block, Comparison, Entrant
from tensorbench.reports.comparisons import comparison, in_family, on_setting
from tensorbench.reports.inference.effects import Verdict, Word
from tensorbench.reports.inference.intervals import Array
from tensorbench.reports.inference.studies import Failures, of_contrast, pooled_failures
from tensorbench.reports.recipes import difference, without_ranks
from tensorbench.reports.results import Results, grouped

#: The name of the reference of allocations.
HEURISTIC = "the heuristic"
#: The smallest number of different ranks of a mode for which a trend is computed.
LEAST_RANKS = 3
#: Matches the end of a row's name in tables if it lists the ranks that the suite gives.
_GIVEN = re.compile(r" (?:\[(.+)\]|(r=[\d,]+))$")


@dataclass(frozen=True)
class Trend:
    """The change of a method's score with the rank of one mode, over allocations that give only this rank.

    It is the least-squares slope of the score over log2 of the rank, in units of the score per doubling of
    the rank.
    """

    mode: str
    #: The names of the allocations, including the heuristic, from the smallest rank of the mode to the
    #: largest.
    allocations: tuple[str, ...]
    #: The slope, in place of the difference of a comparison. Intervals are simultaneous over the method's
    #: trends.
    slope: Comparison


@dataclass(frozen=True)
class Allocations:
    """The allocations of one method at one budget, compared with its heuristic."""

    #: The name of the row with the heuristic's ranks or, without such a row, the method's title.
    method: str
    #: The number of parameters that the budget requests, as text. If it differs between backbones, the text
    #: has all of the numbers.
    size: str
    #: The index of the block in the report that has these rows.
    number: int
    #: The rows, named by the ranks that the suite gives. The reference is `HEURISTIC`. There is no reference
    #: if no row on all settings has the heuristic's ranks.
    block: Block
    trends: tuple[Trend, ...]


def find_allocations(
    results: Results, blocks: Sequence[Block], judged: Callable[[Block], Block]
) -> Iterator[Allocations]:
    """Yields the allocations of each method that has several rows in a block.

    `judged` compares the methods of a block with its reference, and applies the guards to the verdicts.
    """
    for number, block in enumerate(blocks):
        entrants = [
            entrant
            for entrant in block.methods
            if entrant.cells[0].budget == block.budget != OWN_SIZE and "," in entrant.cells[0].rank_names
        ]
        for family in grouped(entrants, lambda entrant: without_ranks(entrant.cells[0])).values():
            rows = [entrant for entrant in family if entrant.cells[0].allocation]
            # The reference needs studies on all settings.
            others = [entrant for entrant in family if entrant not in rows and entrant in block.entrants]
            rows = [*others[:1], *rows]
            # Without a row on all settings there is nothing to show yet.
            if len(rows) > 1 and any(entrant in block.entrants for entrant in rows):
                yield _allocations(results, number, block, rows, judged)


def _allocations(
    results: Results,
    number: int,
    block: Block,
    family: Sequence[Entrant],
    judged: Callable[[Block], Block],
) -> Allocations:
    """Compares the allocations in `family`. If some row has the heuristic's ranks, it comes first."""
    first = family[0].cells[0]
    heuristic = None if first.allocation else family[0]

    def renamed(entrant: Entrant) -> Entrant:
        return replace(entrant, method=HEURISTIC if entrant is heuristic else short_name(entrant.method))

    own = replace(
        block,
        noun="allocation",
        reference=heuristic and renamed(heuristic),
        entrants=tuple(renamed(entrant) for entrant in family if entrant in block.entrants),
        part=tuple(renamed(entrant) for entrant in family if entrant in block.part),
        left_out={short_name(e.method): why for e in family if (why := block.left_out.get(e.method))},
        notes=(),
    )
    own = judged(own)
    method = heuristic.method if heuristic else first.title
    sizes = dict.fromkeys(cell.asked for entrant in family for cell in entrant.cells)
    size = " or ".join(f"{size:,.0f}" for size in sizes if size is not None)
    return Allocations(method, f"{size} parameters", number, own, tuple(_trends(results, own)))


def short_name(method: str) -> str:
    """The ranks in a row's name in tables, such as `layer=1`, or the whole name if it lists no ranks.

    Several ranks are joined by a plus sign, because sentences list such names with commas.
    """
    match = _GIVEN.search(method)
    return next(filter(None, match.groups())).replace(", ", "+") if match else method


def _trends(results: Results, block: Block) -> Iterator[Trend]:
    """Yields the trend of each mode with at least `LEAST_RANKS` ranks. Their intervals are simultaneous.

    There are no trends without a reference. A mode also needs two ranks and a shared study on every setting.
    """
    if block.reference is None:
        return
    rows: dict[str, tuple[list[Entrant], Array]] = {}
    for place, mode in enumerate(block.reference.cells[0].rank_names.split(",")):
        own = [each for each in block.entrants if each.cells[0].allocation in ("", mode)]
        # (allocations, settings)
        ranks = np.array([[int(cell.ranks.split(",")[place]) for cell in each.cells] for each in own])
        counts = [len({*of_setting}) for of_setting in ranks.T]
        numbers = ([{*each.on[setting].studies.numbers} for each in own] for setting in block.settings)
        paired = all(set.intersection(*of_setting) for of_setting in numbers)
        if paired and min(counts) > 1 and max(counts) >= LEAST_RANKS:
            rows[mode] = own, np.log2(ranks)
    for mode, (own, logs) in rows.items():
        order = logs[:, 0].argsort(kind="stable")
        yield Trend(
            mode,
            tuple(own[place].method for place in order),
            _slope(results, block, own, logs, len(rows)),
        )


def _slope(results: Results, block: Block, own: Sequence[Entrant], logs: Array, claims: int) -> Comparison:
    """The slope of the scores of these allocations over `logs` (allocations, settings)."""
    failures = pooled_failures([studies for entrant in block.entrants for studies in entrant.studies])
    centred = logs - logs.mean(0)
    slope = contrast(results, own, centred / (centred**2).sum(0), block.k, claims, failures)
    why = next(_withheld(block, own), "")
    return replace(slope, verdict=Verdict(Word.INCONCLUSIVE, reason=why)) if why else slope


def contrast(
    results: Results,
    entrants: Sequence[Entrant],
    weights: Array,
    k: int,
    claims: int = 1,
    failures: Failures | None = None,
) -> Comparison:
    """The weighted sum of these methods' scores after k trials, as a mean over settings.

    `weights` (entrants, settings) sum to zero over the entrants. The interval is simultaneous over `claims`
    contrasts. `failures` are those of all methods that are compared, by default of these. The methods share a
    study on each setting.
    """
    failures = failures or pooled_failures([studies for entrant in entrants for studies in entrant.studies])
    parts = []
    for setting, of_setting in zip(entrants[0].on, weights.T.tolist(), strict=True):
        studies = [entrant.on[setting].studies for entrant in entrants]
        part = of_contrast(of_setting, studies, k, failures)
        part = on_setting(results, entrants[0].on[setting].cell, part)
        # The weights sum to zero, so the sum is at most half of their sizes, times the range of scores.
        parts.append(replace(part, limit=part.limit * sum(map(abs, of_setting)) / 2))
    return comparison(parts, claims, 0.0)


def _withheld(block: Block, own: Iterable[Entrant]) -> Iterator[str]:
    """Yields the reasons to withhold a verdict on a trend over these allocations."""
    for entrant in own:
        if (difference := entrant.differences.get(block.k)) and difference.verdict.reason:
            yield difference.verdict.reason
        # A trend of runs that did not collapse would be read as one of all runs.
        if any(not own.cell.studies and own.collapses and own.collapses.count for own in entrant.on.values()):
            yield f"runs of {entrant.method} collapsed"
        if entrant.method in [edge.method for edge in block.edges]:
            yield f"the best rates of {entrant.method} lie at an edge"


# --- methods at several budgets ---


@dataclass(frozen=True)
class OverBudgets:
    """Methods that ran under several budgets, on the same settings and with the same tuning."""

    #: A block for each budget, from the smallest to the largest methods.
    blocks: tuple[Block, ...]
    #: Each method by its name, under each budget at which it has a mean over all settings, from its smallest
    #: number of parameters to its largest.
    methods: Mapping[str, Mapping[str, Entrant]]
    #: Each method's difference, under a budget, from itself with the next smaller number of parameters.
    #: Intervals are simultaneous over all differences of the group. There is none between budgets at which
    #: the method has another recipe or equally many parameters, or shares no study.
    steps: Mapping[str, Mapping[str, Comparison]]


def over_budgets(blocks: Iterable[Block], judged: Callable[[Block], Block]) -> Iterator[OverBudgets]:
    """Groups the methods that have a known number of parameters and scores under several budgets.

    The methods of a group share the metric, the tuning and the settings. `judged` compares the methods of a
    block with its reference, and applies the guards to the verdicts.
    """
    comparable = grouped(blocks, lambda block: (block.metric, block.settings, block.k, block.tuned))
    for group in comparable.values():
        # If a budget has several recipes, the block of the largest group is first in `group` and is kept.
        by_budget = {block.budget: block for block in reversed(group) if block.budget != OWN_SIZE}
        sized = {b: [e for e in block.entrants if e.parameters is not None] for b, block in by_budget.items()}
        budgets = [budget for budget, own in sized.items() if own]
        budgets.sort(key=lambda budget: median(entrant.parameters or 0 for entrant in sized[budget]))
        methods: dict[str, dict[str, Entrant]] = defaultdict(dict)
        for budget in budgets:
            for entrant in sized[budget]:
                methods[entrant.method][budget] = entrant
        several = {
            name: dict(sorted(own.items(), key=lambda item: item[1].parameters or 0))
            for name, own in methods.items()
            if len(own) > 1
        }
        if several:
            ordered = tuple(by_budget[budget] for budget in budgets)
            yield OverBudgets(ordered, several, _steps(by_budget, several, judged))


def _steps(
    blocks: Mapping[str, Block],
    methods: Mapping[str, Mapping[str, Entrant]],
    judged: Callable[[Block], Block],
) -> dict[str, dict[str, Comparison]]:
    """Compares each method with itself under the next smaller budget. `blocks` has the block of each budget.

    Variances are not moderated, since noise may depend on the budget.
    """
    pairs = [
        (method, smaller, larger)
        for method, entrants in methods.items()
        for smaller, larger in pairwise(entrants)
        if _differ_in_size_alone(entrants[smaller], entrants[larger])
    ]
    steps: dict[str, dict[str, Comparison]] = defaultdict(dict)
    for method, smaller, larger in pairs:
        # The differences that entrants have are from the references of their own blocks.
        sides = [
            replace(methods[method][budget], method=f"{method} ({budget})", differences={})
            for budget in (smaller, larger)
        ]
        block = replace(blocks[larger], reference=sides[0], entrants=tuple(sides), part=())
        for each in judged(block).compared:
            steps[method][larger] = in_family(each.differences[block.k], len(pairs), block.threshold)
    return steps


def _differ_in_size_alone(smaller: Entrant, larger: Entrant) -> bool:
    """Whether a method has fewer parameters under one of two budgets, and the same recipe on each setting."""
    cells = zip(smaller.cells, larger.cells, strict=True)
    same_recipe = not any(difference(first.recipe, second.recipe) for first, second in cells)
    return same_recipe and smaller.parameters != larger.parameters
