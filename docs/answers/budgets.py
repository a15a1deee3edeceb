"""Answers the questions about budgets of results/next-studies.md, each by its registered rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from marked import table

from tensorbench.reports.analysis import Analysis
from tensorbench.reports.blocks import Block, Comparison
from tensorbench.reports.comparisons import in_family
from tensorbench.reports.figures import draw
from tensorbench.reports.inference.effects import Word
from tensorbench.reports.ranks import OverBudgets, contrast
from tensorbench.reports.reading import read
from tensorbench.reports.results import Cell, Results
from tensorbench.reports.selection import Selection

from .answer import Answer, Picture, bounds, points, with_interval
from .registered import (
    NONE_AT_ENDS,
    at_ends,
    at_ends_of_pilot,
    completed,
    limits,
    nothing_compared,
)
from .studies import LORA, QKV_DEPTH, Ruling, analysed, answered, compared, rates, ruled, studies_complete

#: A quarter of the first study's budget, that budget, and four times that budget, with their names in texts.
BUDGETS = {
    "isoparameters 1": "a quarter of the budget",
    "isoparameters 4": "the budget",
    "isoparameters 16": "four times the budget",
}
QUARTER, FIRST, FOURFOLD = BUDGETS
#: The smallest and the largest rate that the pilot tries.
ENDS_OF_PILOT = (5e-4, 5e-2)


@dataclass(frozen=True)
class StudyOfBudgets:
    """The answers of the study of budgets, from its pack and the pack of the first study.

    The pack `budgets` has the trials of LoRA and of `qkv_depth` at a quarter of the first study's budget and
    at four times that budget. The pack `study` has those at the budget itself.
    """

    budgets: Path
    study: Path

    @cached_property
    def analysis(self) -> Analysis:
        return analysed(self.study, self.budgets, selection=Selection(methods=(QKV_DEPTH,), reference=LORA))

    @cached_property
    def own(self) -> Results:
        return read("", [str(self.budgets)])

    def answers(self) -> dict[str, Answer]:
        """The answers to questions B1 to B4, by title."""
        rules = {"B1": self.beside_lora, "B2": self.bought, "B3": self.interaction, "B4": best_rates}
        titles = {f"Question {name}": rule for name, rule in rules.items()}
        stored = [cell for cell in self.own.all_cells if cell.budget not in (QUARTER, FOURFOLD)]
        if reason := nothing_compared(stored, (LORA, QKV_DEPTH)):
            return dict.fromkeys(titles, Answer(f"**Nothing is compared**: {reason}"))
        return {
            title: completed(answered([(self.analysis, rule)]), self.analysis, self.qualified())
            for title, rule in titles.items()
        }

    def qualified(self) -> Iterator[str]:
        """Yields sentences on withheld verdicts, and on centres and best rates at ends."""
        for block in self.group.blocks:
            yield from (f"With {BUDGETS[block.budget]}: {guard}" for guard in block.guards)
        yield from self.lower_bounds
        yield from at_ends([self.analysis], _name)
        yield from at_ends_of_pilot([self.analysis], lambda cell: ENDS_OF_PILOT, _name)

    @property
    def lower_bounds(self) -> list[str]:
        """Sentences on methods whose best rates lie at an edge of their window."""
        return [
            f"With {BUDGETS[block.budget]}: {edge}" for block in self.group.blocks for edge in block.edges
        ]

    @property
    def group(self) -> OverBudgets:
        (group,) = self.analysis.over_budgets
        return group

    @property
    def beside(self) -> dict[str, Comparison]:
        """The differences of `qkv_depth` from LoRA under the two new budgets, by budget."""
        return {
            block.budget: in_family(entrant.differences[block.k], len(BUDGETS) - 1, block.threshold)
            for block in self.group.blocks
            if block.budget != FIRST
            for entrant in block.compared
        }

    def beside_lora(self, *blocks: Block) -> Ruling:
        """Question B1: `qkv_depth` compared with LoRA at a quarter and at four times the parameters."""
        differences = {BUDGETS[budget]: each for budget, each in self.beside.items()}
        return ruled(["parameters", f"from {LORA}"], differences, blocks[0])

    def bought(self, *blocks: Block) -> Ruling:
        """Question B2: each method under a budget compared with itself under the next smaller one."""
        steps = {
            f"{method} from {BUDGETS[smaller]} to {BUDGETS[larger]}": own[larger]
            for method, own in self.group.steps.items()
            for smaller, larger in pairwise(BUDGETS)
        }
        return ruled(["method", "larger minus smaller"], steps, blocks[0])

    def interaction(self, *blocks: Block) -> Ruling:
        """Question B3: the difference from LoRA at four times the parameters minus that at a quarter."""
        by_budget = {block.budget: block for block in blocks}
        sides = [
            (weight * sign, method, budget)
            for budget, weight in ((FOURFOLD, 1.0), (QUARTER, -1.0))
            for method, sign in ((QKV_DEPTH, 1.0), (LORA, -1.0))
        ]
        entrants = [self.group.methods[method][budget] for _, method, budget in sides]
        weights = np.tile([[weight] for weight, _, _ in sides], len(blocks[0].settings))
        change = contrast(self.analysis.results, entrants, weights, blocks[0].k)
        side = change.verdict.side
        # A better rate of a row at an edge of its window moves the contrast towards its weight's sign.
        reasons = [
            str(edge)
            for weight, method, budget in sides
            for edge in by_budget[budget].edges
            if edge.method == method and side == ("worse" if weight > 0 else "better")
        ]
        for block in (by_budget[QUARTER], by_budget[FOURFOLD]):
            reasons += map(str, block.collapsed)
            verdicts = [entrant.differences[block.k].verdict for entrant in block.compared]
            reasons += [verdict.reason for verdict in verdicts if verdict.word is Word.NONE]
        words = {
            "better": "is higher at four times the parameters than at a quarter",
            "worse": "is lower at four times the parameters than at a quarter",
        }
        outcome = words.get(side, "is inconclusive")
        if reasons:
            outcome = f"is inconclusive ({reasons[0].rstrip('.')})"
        effect = change.effect.difference
        short = f"The difference from {LORA} **{outcome}**: {with_interval(effect, change.interval)}."
        head = ["four times minus a quarter", "interval", *(setting.task for setting in blocks[0].settings)]
        on_tasks = [points(part.difference) for part in change.effect.parts]
        return Ruling(short, head, [[points(effect), bounds(change.interval), *on_tasks]])

    def picture(self) -> Picture:
        """The figure of question B2: scores by the number of parameters."""
        (drawn,) = (each for each in draw(self.analysis)[0] if each.name.startswith("ranks-budgets"))
        return Picture("findings-budgets", drawn)

    def first(self, answers: dict[str, Answer]) -> str:
        """The part with which the answers begin: all in short, a figure, a table and limits."""
        k, picture = self.group.blocks[0].k, self.picture()
        beside, bought, change = (answers[f"Question B{number}"].short for number in (1, 2, 3))
        complete, _ = studies_complete(self.analysis)
        short = [
            f"{QKV_DEPTH} beside {LORA} with as many parameters, after {k} trials of tuning, by {complete} "
            f"studies: {beside} " + " ".join(["*Equivalent* is within a point.", *self.lower_bounds]),
            f"From a smaller budget to a larger one: {bought}",
            change,
            f"With the parameters of {LORA} r=4 both were compared by the [first study](findings.md).",
        ]
        parts = [
            "\n".join(f"- {each}" for each in short),
            picture.shown,
            picture.drawn.caption,
            self.by_size(),
            "\n".join(f"- {limit}" for limit in self.limits()),
        ]
        return "\n\n".join(parts)

    def by_size(self) -> str:
        """A table of both methods under all budgets, with the differences of questions B1 and B2."""
        rows, blocks = [], {block.budget: block for block in self.group.blocks}
        from_lora = self.beside
        for method, own in self.group.methods.items():
            for budget, entrant in own.items():
                block = blocks[budget]
                beside = from_lora.get(budget) if method != LORA else None
                both = (beside, self.group.steps[method].get(budget))
                sizes = dict.fromkeys(f"{cell.parameters:,}" for cell in entrant.cells)
                rows.append(
                    [
                        method,
                        " or ".join(sizes),
                        block.unit.score(entrant.means[block.k].value),
                        *(text for each in both for text in compared(each)),
                    ]
                )
        head = ["method", "parameters", "accuracy, %", f"from {LORA}", "verdict", "from fewer", "verdict"]
        return table(head, rows)

    def limits(self) -> Iterator[str]:
        """Yields what limits the answers."""
        windows = {
            f"{BUDGETS[block.budget]}, {cell.studies.window}": None
            for block in self.group.blocks
            for entrant in block.entrants
            for cell in entrant.cells
            if cell.studies
        }
        remarks = (
            "The windows of rates, which intervals take as given, were chosen by pilots on movie sentiment: "
            f"with {'; with '.join(windows)}.",
            " ".join(self.qualified()) or NONE_AT_ENDS,
        )
        entrants = {_name(e.cells[0]): e for own in self.group.methods.values() for e in own.values()}
        new = (cell for cell in self.own.all_cells if cell.budget in (QUARTER, FOURFOLD))
        extent = "Two methods, three budgets, two small backbones, four tasks"
        return limits(extent, remarks, entrants, new, self.own)


def _name(cell: Cell) -> str:
    return f"{cell.method} with {BUDGETS[cell.budget]}"


def best_rates(*blocks: Block) -> Ruling:
    """Question B4: the smoothed best rate of each row, with its range near the best. It has no verdict."""
    by_size = sorted(blocks, key=lambda block: list(BUDGETS).index(block.budget))
    by_budget = [(block, rates(block)) for block in by_size]
    rows = [[BUDGETS[block.budget], *row] for block, ruling in by_budget for row in ruling.rows]
    return Ruling("Shown without a verdict.", ["parameters", *by_budget[0][1].head], rows)
