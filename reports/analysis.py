"""The analysis of a study: blocks of comparable methods with their comparisons, ranks and limits.

A block holds the methods of one budget with one metric and one recipe. They are compared over settings (a
task on a backbone), seed by seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.metrics import METRICS
from reports.collapses import Collapses, collapses
from reports.comparisons import (
    POWER,
    AgainstReference,
    Entrants,
    Reference,
    Result,
    Statistic,
    against_reference,
    find_reference,
)
from reports.evidence import Evidence, gather
from reports.inference.intervals import LEAST_SEEDS, of_each
from reports.inference.power import Design
from reports.ranking import RANKS, Ranking
from reports.recipes import Alike, Recipe, alike, in_words, recipes
from reports.study import Cell, Study, TaskAndBackbone, block_order, grouped
from reports.thresholds import Asked, threshold_of, thresholds
from reports.units import Unit, unit_of
from reports.words import listed, many

#: The statistics of a block. Each is computed, and exported as a table of its name.
STATISTICS: tuple[Statistic[Any], ...] = (POWER, RANKS)


@dataclass(frozen=True)
class Block:
    """The methods of one budget with one metric and one recipe, and what can be claimed of them."""

    budget: str
    metric: str
    #: The task of its settings if scores have that task's units; else empty.
    task: str
    #: The budget, with what sets the block apart from others of it.
    title: str
    unit: Unit
    #: The smallest difference that matters, in the metric's units.
    threshold: float
    #: The settings on which methods can be compared.
    settings: tuple[TaskAndBackbone, ...]
    #: Cells of every method that has runs on all settings, in their order.
    cells: Mapping[str, tuple[int, ...]] = field(repr=False)
    #: Method -> why it is in no mean and no rank.
    left_out: Mapping[str, str]
    #: The method that replaces LoRA as the reference; empty for LoRA.
    named_reference: str = ""
    #: Number of references whose blocks have simultaneous intervals.
    families: int = 1
    #: None if there is none, for the reason in `no_reference`.
    reference: Reference | None = None
    no_reference: str = ""
    comparisons: tuple[AgainstReference, ...] = ()
    #: Cells and comparisons of methods that lack some settings. They are in no mean over settings.
    cells_of_part: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    of_part: tuple[AgainstReference, ...] = ()
    #: What statistics read; None if no method takes part.
    entrants: Entrants | None = field(default=None, repr=False)
    #: Results of `STATISTICS`, as far as they are known.
    statistics: Mapping[Statistic[Any], Any] = field(default_factory=dict, repr=False)
    #: Limits of the comparisons, and reasons why methods are in none.
    notes: tuple[str, ...] = ()

    def result(self, statistic: Statistic[Result]) -> Result | None:
        """The result of a statistic; None if too little is known."""
        return self.statistics.get(statistic)

    @property
    def ranking(self) -> Ranking | None:
        return self.result(RANKS)

    @property
    def design(self) -> Design | None:
        """The differences that its comparisons can detect."""
        return self.result(POWER)

    @property
    def rank_notes(self) -> tuple[str, ...]:
        return self.ranking.notes if self.ranking else ()

    @property
    def all_comparisons(self) -> tuple[AgainstReference, ...]:
        """Comparisons over all settings, then those over a part of them."""
        return (*self.comparisons, *self.of_part)

    @property
    def heading(self) -> str:
        """The title, with the reference if there are several."""
        return f"{self.title} · against {self.named_reference}" if self.families > 1 else self.title

    @property
    def level(self) -> float:
        """The joint level of all intervals of the block."""
        return of_each(self.families)

    @property
    def held(self) -> str:
        """That level in words."""
        together = f", those of all {self.families} references together with 95%"
        return f"{100 * self.level:.4g}%" + together * (self.families > 1)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods with all settings, best mean rank first."""
        return self.ranking.methods if self.ranking else tuple(self.cells)

    @property
    def collapsed(self) -> tuple[Collapses, ...]:
        """Every collapsed side of its comparisons, once."""
        return tuple(
            dict.fromkeys(side for comparison in self.all_comparisons for side in comparison.collapsed)
        )

    @property
    def claims(self) -> int:
        """Number of comparisons with simultaneous intervals."""
        return len(self.all_comparisons)

    @property
    def without_examples(self) -> tuple[TaskAndBackbone, ...]:
        """The settings on which some comparison is of seeds alone."""
        alone = {
            setting
            for comparison in self.all_comparisons
            for setting, part in zip(comparison.settings, comparison.effect.parts, strict=True)
            if part.count is None
        }
        return tuple(setting for setting in self.settings if setting in alone)


@dataclass(frozen=True)
class Analysis:
    """A study with everything that is computed from it."""

    study: Study
    #: The smallest difference that matters, by metric.
    thresholds: Mapping[str, float]
    blocks: tuple[Block, ...]
    #: Limits of the whole report, the notes of the study included.
    notes: tuple[str, ...]
    #: The runs as far as they were read.
    evidence: Evidence = field(repr=False)
    #: By cell.
    collapses: Mapping[int, Collapses]


def analyse(study: Study, threshold: Asked = None) -> Analysis:
    """Computes what the report shows beyond means. Raises UserError as `thresholds` does."""
    matters = thresholds((cell.metric for cell in study.all_cells if cell.metric), threshold)
    of_cells = recipes(study)
    budgets = sorted(dict.fromkeys(cell.budget for cell in study.all_cells), key=block_order)
    begun = [
        _with_reference(study, block, of_cells)
        for budget in budgets
        for block in _blocks(study, budget, of_cells, matters)
    ]
    evidence, collapsed = gather(study, _needed(begun)), collapses(study)
    blocks = tuple(_finished(evidence, block, collapsed) for block in begun)
    notes = (*study.notes, *evidence.notes, *_limits(study))
    return Analysis(study, matters, blocks, notes, evidence, collapsed)


# --- who is compared ---


@dataclass(frozen=True)
class Comparable:
    """Methods of one budget with one metric and one recipe."""

    title: str
    metric: str
    #: The task if scores have its units, which have no mean over tasks; else empty.
    task: str
    methods: Mapping[str, Sequence[Cell]]
    #: A note on another recipe than that of the budget's largest group; else empty.
    note: str

    @property
    def cells(self) -> list[Cell]:
        return [cell for cells in self.methods.values() for cell in cells]


def comparable(
    study: Study, budget: str, cells: Sequence[Cell], of_cells: Mapping[int, Recipe]
) -> Iterator[Comparable]:
    """The cells of a budget in groups that may be compared; of one metric, the largest group first."""
    by_metric = grouped(cells, lambda cell: measured(study.metrics[cell.number], cell.task))
    for (metric, task), of_metric in by_metric.items():
        groups = alike(of_cells, grouped(of_metric, lambda cell: cell.method))
        for number, group in enumerate(groups, 1):
            parts = [
                budget,
                *([f"{metric} on {task}" if task else metric] if len(by_metric) > 1 else []),
                *([f"recipe {number}"] if number > 1 else []),
            ]
            title = " · ".join(part for part in parts if part)
            yield Comparable(title, metric, task, group.methods, _apart(group, groups[0]))


def measured(metric: str, task: str) -> tuple[str, str]:
    """The metric, with the task if scores have that task's units."""
    return metric, task if metric and METRICS.get(metric).in_units else ""


def _apart(group: Alike, first: Alike) -> str:
    if group is first:
        return ""
    return (
        f"Run with another recipe than {listed(list(first.methods)[:3])} "
        f"({in_words(first.differs(group.cells))}): shown apart, and no verdict compares them."
    )


def _blocks(
    study: Study, budget: str, of_cells: Mapping[int, Recipe], matters: Mapping[str, float]
) -> Iterator[Block]:
    """The blocks of a budget, with the methods that take part in each."""
    planned = [cell for cell in study.all_cells if cell.budget == budget]
    for group in comparable(study, budget, planned, of_cells):
        units = (cell.unit for cell in planned if cell.unit and (not group.task or cell.task == group.task))
        begun = Block(
            budget=budget,
            metric=group.metric,
            task=group.task,
            title=group.title,
            unit=unit_of(group.metric, next(units, "")),
            threshold=threshold_of(group.metric, matters, group.cells),
            settings=(),
            cells={},
            left_out={},
            families=len(study.compared),
        )
        for reference, named in study.compared.items():
            kept = {*named, reference} if named else set(group.methods)
            methods = {method: cells for method, cells in group.methods.items() if method in kept}
            if not named or methods.keys() & {*named}:
                block = _with_entrants(replace(begun, named_reference=reference), methods)
                yield replace(block, notes=(group.note, *block.notes)) if group.note else block


def _with_entrants(block: Block, methods: Mapping[str, Sequence[Cell]]) -> Block:
    """The block with the methods that take part, and those that are left out and why."""
    by_setting = grouped((cell for cells in methods.values() for cell in cells), lambda cell: cell.setting)
    # A setting on which hardly anything has run yet would keep everybody out.
    least = min(2, len(methods))
    settings = tuple(
        setting for setting, cells in by_setting.items() if sum(cell.finished > 0 for cell in cells) >= least
    )
    complete: dict[str, tuple[int, ...]] = {}
    of_part: dict[str, tuple[int, ...]] = {}
    left_out: dict[str, str] = {}
    for method, cells in methods.items():
        on = {cell.setting: cell for cell in cells if cell.setting in settings}
        if not on:
            continue
        if reason := _missing(settings, on):
            left_out[method] = reason
            if finished := tuple(cell.number for cell in on.values() if cell.finished):
                of_part[method] = finished
        else:
            complete[method] = tuple(on[setting].number for setting in settings)
    notes = []
    if len(settings) < len(by_setting):
        unfinished = listed(setting for setting in by_setting if setting not in settings)
        notes.append(f"Too few methods have finished runs on {unfinished}: not in what follows.")
    if left_out:
        notes.append(
            f"{len(left_out)} of {many(len(complete) + len(left_out), 'method')} lack finished runs on "
            "some settings. They are compared on the others, and left out of this budget's means and ranks: "
            f"{listed(left_out)}."
        )
    if block.metric and not METRICS.get(block.metric).higher:
        notes.append(f"Less {block.metric} is better: a positive difference is a reduction.")
    return replace(
        block,
        settings=settings,
        cells=complete,
        cells_of_part=of_part,
        left_out=left_out,
        notes=tuple(notes),
    )


def _missing(settings: Iterable[TaskAndBackbone], on: Mapping[TaskAndBackbone, Cell]) -> str:
    """The settings that a method lacks, in words; empty if it has all."""
    if unplanned := [setting for setting in settings if setting not in on]:
        return f"not planned on {listed(unplanned)}"
    return "; ".join(
        f"0 of {cell.seeds} seeds on {cell.setting}" for cell in on.values() if not cell.finished
    )


def _with_reference(study: Study, block: Block, of_cells: Mapping[int, Recipe]) -> Block:
    if not block.cells:
        return block
    first = [study.all_cells[number] for number in next(iter(block.cells.values()))]
    reference, why = find_reference(study, block.budget, first, of_cells, block.named_reference)
    return replace(block, reference=reference, no_reference=" ".join(why), notes=(*block.notes, *why))


def _needed(blocks: Sequence[Block]) -> list[int]:
    """The cells whose predictions the blocks need."""
    return [
        number
        for block in blocks
        for cells in (
            (block.reference.cells if block.reference else ()),
            *block.cells.values(),
            *block.cells_of_part.values(),
        )
        for number in cells
    ]


def _finished(evidence: Evidence, block: Block, collapsed: Mapping[int, Collapses]) -> Block:
    """The block with its comparisons and statistics."""
    if not block.cells:
        return block
    everything, notes = against_reference(
        evidence,
        {**block.cells, **block.cells_of_part},
        block.reference,
        block.threshold,
        block.families,
        collapsed,
    )
    comparisons = [each for each in everything if each.method not in block.cells_of_part]
    entrants = Entrants(
        evidence, block.cells, tuple(comparisons), len(everything), block.level, block.threshold
    )
    statistics = {
        statistic: result for statistic in STATISTICS if (result := statistic.compute(entrants)) is not None
    }
    block = replace(
        block,
        of_part=everything[len(comparisons) :],
        entrants=entrants,
        statistics=statistics,
        notes=(*block.notes, *notes),
    )
    comparisons.sort(key=lambda comparison: block.methods.index(comparison.method))
    return replace(block, comparisons=tuple(comparisons))


# --- limits ---


def _limits(study: Study) -> Iterator[str]:
    """Notes on few seeds, a single task, missing seeds and several metrics."""
    most = max(cell.seeds for cell in study.all_cells)
    if most < LEAST_SEEDS:
        yield (
            f"{many(most, 'seed')} per cell at most: too little is known of how much training varies, so "
            "that no difference can be claimed."
        )
    elif most < 5:
        yield (
            f"{many(most, 'seed')} per cell at most: intervals are wide, and hardly any difference can be "
            "shown."
        )
    if len({cell.task for cell in study.all_cells}) == 1:
        yield "One task: what is said holds for it, and nothing can be said of other tasks."
    if lost := sum(not cell.complete for cell in study.all_cells):
        yield (
            f"{many(lost, 'cell')} of {len(study.all_cells):,} incomplete: shown, marked †, with the seeds "
            "that they have."
        )
    metrics = list(dict.fromkeys(cell.metric for cell in study.all_cells if cell.metric))
    if len(metrics) > 1:
        yield (
            f"Scores are of several metrics ({listed(metrics)}): they are not averaged, and each has its "
            "threshold."
        )
