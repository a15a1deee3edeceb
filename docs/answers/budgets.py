"""Answers the questions about budgets of results/next-studies.md, each by its registered rule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from tensorbench.reports.analysis import Analysis
from tensorbench.reports.blocks import Block
from tensorbench.reports.comparisons import in_family
from tensorbench.reports.inference.effects import Answer as Size
from tensorbench.reports.ranks import OverBudgets, contrast
from tensorbench.reports.reading import read
from tensorbench.reports.results import Cell
from tensorbench.reports.selection import Selection

from .answer import Answer, bounds, points, with_interval
from .registered import at_ends_of_pilot, completed, nothing_compared, qualified
from .studies import LORA, QKV_DEPTH, Ruling, analysed, answered, rates, ruled

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

    def answers(self) -> dict[str, Answer]:
        """The answers to questions B1 to B4, by title."""
        rules = {"B1": beside_lora, "B2": self.bought, "B3": self.interaction, "B4": best_rates}
        titles = {f"Question {name}": rule for name, rule in rules.items()}
        cells = read("", [str(self.budgets)]).all_cells
        stored = [cell for cell in cells if cell.budget not in (QUARTER, FOURFOLD)]
        if reason := nothing_compared(stored, (LORA, QKV_DEPTH)):
            return dict.fromkeys(titles, Answer(f"**Nothing is compared**: {reason}"))
        sentences = [
            *qualified([self.analysis], _name),
            *at_ends_of_pilot([self.analysis], ENDS_OF_PILOT, _name),
        ]
        return {
            title: completed(answered([(self.analysis, rule)]), self.analysis, sentences)
            for title, rule in titles.items()
        }

    @property
    def group(self) -> OverBudgets:
        (group,) = self.analysis.over_budgets
        return group

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
            reasons += [verdict.reason for verdict in verdicts if verdict.answer is Size.NONE]
        words = {"better": "rises with the budget", "worse": "falls with the budget"}
        outcome = words.get(side, "is undecided")
        if reasons:
            outcome = f"is undecided ({reasons[0].rstrip('.')})"
        effect = change.effect.difference
        short = f"The difference from {LORA} **{outcome}**: {with_interval(effect, change.interval)}."
        head = ["four times minus a quarter", "interval", *(setting.task for setting in blocks[0].settings)]
        on_tasks = [points(part.difference) for part in change.effect.parts]
        return Ruling(short, head, [[points(effect), bounds(change.interval), *on_tasks]])


def _name(cell: Cell) -> str:
    return f"{cell.method} with {BUDGETS[cell.budget]}"


def beside_lora(*blocks: Block) -> Ruling:
    """Question B1: `qkv_depth` compared with LoRA at a quarter and at four times the parameters."""
    differences = {
        BUDGETS[block.budget]: in_family(entrant.differences[block.k], len(BUDGETS) - 1, block.threshold)
        for block in blocks
        if block.budget != FIRST
        for entrant in block.compared
    }
    return ruled(["parameters", f"from {LORA}"], differences, blocks[0])


def best_rates(*blocks: Block) -> Ruling:
    """Question B4: the smoothed best rate of each row, with its range near the best. It has no verdict."""
    by_size = sorted(blocks, key=lambda block: list(BUDGETS).index(block.budget))
    by_budget = [(block, rates(block)) for block in by_size]
    rows = [[BUDGETS[block.budget], *row] for block, ruling in by_budget for row in ruling.rows]
    return Ruling("Shown without a verdict.", ["parameters", *by_budget[0][1].head], rows)
