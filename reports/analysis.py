"""The analysis behind a report: blocks of comparable methods with their comparisons, ranks and limits.

A block consists of the methods of one budget with one metric and one recipe. Methods are compared over the
block's settings, and their scores are paired by seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tensorbench.metrics import METRICS
from tensorbench.reports.collapses import Collapses, collapses
from tensorbench.reports.comparisons import (
    POWER,
    AgainstReference,
    Entrants,
    Reference,
    Result,
    Statistic,
    against_reference,
    find_reference,
)
from tensorbench.reports.evidence import Evidence, gather
from tensorbench.reports.guards import NO_GUARDS, NOTHING, Guards, find_guards
from tensorbench.reports.inference.intervals import LEAST_SEEDS, of_each
from tensorbench.reports.inference.power import Design
from tensorbench.reports.ranking import RANKS, Ranking
from tensorbench.reports.recipes import Alike, Recipe, alike, in_words, recipes
from tensorbench.reports.study import Cell, Study, TaskAndBackbone, block_order, grouped
from tensorbench.reports.thresholds import CustomThresholds, threshold_of, thresholds
from tensorbench.reports.units import Unit, sign_note, unit_of
from tensorbench.reports.words import listed, many

#: The statistics that are computed for each block. Each is exported as a table with the statistic's name.
STATISTICS: tuple[Statistic[Any], ...] = (POWER, RANKS)


@dataclass(frozen=True)
class Block:
    """The methods of one budget with one metric and one recipe, with their comparisons and statistics."""

    budget: str
    metric: str
    #: The block's only task, if the metric has the unit of the task's targets. Empty for all other metrics,
    #: since several tasks may share them.
    task: str
    #: The budget's name. If the budget has several metrics, the metric follows, with the task if `task` names
    #: one. If the recipe is not the first, its number follows, for example "isorank 4 · recipe 2".
    title: str
    unit: Unit
    #: The smallest difference that matters, in units of the metric.
    threshold: float
    #: The settings on which methods are compared.
    settings: tuple[TaskAndBackbone, ...]
    #: By method, the numbers of its cells in the order of `settings`. Only methods with runs on all settings.
    cells: Mapping[str, tuple[int, ...]] = field(repr=False)
    #: The reason why a method is in no mean over settings and has no rank, by method.
    left_out: Mapping[str, str]
    #: The method that replaces LoRA as the reference. Empty for LoRA.
    named_reference: str = ""
    #: The number of references in the report. Intervals are simultaneous over the blocks of all references.
    families: int = 1
    #: The reference. If it is None, `no_reference` says why, unless `cells` is empty.
    reference: Reference | None = None
    no_reference: str = ""
    #: The comparisons of the methods in `cells` with the reference.
    comparisons: tuple[AgainstReference, ...] = ()
    #: Like `cells`, for methods with runs on some of the settings only.
    cells_of_part: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    #: The comparisons of the methods in `cells_of_part`, each on the settings with its runs.
    of_part: tuple[AgainstReference, ...] = ()
    #: The collapsed runs of cells without a finished run, which are in no comparison.
    collapsed_entirely: tuple[Collapses, ...] = ()
    #: The methods and comparisons from which statistics are computed. None if `cells` is empty.
    entrants: Entrants | None = field(default=None, repr=False)
    #: The results of those `STATISTICS` that could be computed.
    statistics: Mapping[Statistic[Any], Any] = field(default_factory=dict, repr=False)
    #: Limits of the comparisons, and reasons why some methods are not compared.
    notes: tuple[str, ...] = ()
    #: What withholds verdicts.
    guards: Guards = NO_GUARDS

    def result(self, statistic: Statistic[Result]) -> Result | None:
        """The result of a statistic. None if too little is known to compute the statistic."""
        return self.statistics.get(statistic)

    @property
    def ranking(self) -> Ranking | None:
        return self.result(RANKS)

    @property
    def design(self) -> Design | None:
        """The seeds, claims and noise that determine which differences can be detected.

        None if the noise is unknown.
        """
        return self.result(POWER)

    @property
    def rank_notes(self) -> tuple[str, ...]:
        return self.ranking.notes if self.ranking else ()

    @property
    def all_comparisons(self) -> tuple[AgainstReference, ...]:
        """The comparisons over all settings, followed by the comparisons over some settings only."""
        return (*self.comparisons, *self.of_part)

    @property
    def heading(self) -> str:
        """The title. If the report has several references, the block's reference is appended."""
        return f"{self.title} · against {self.named_reference}" if self.families > 1 else self.title

    @property
    def level(self) -> float:
        """The joint confidence level of the block's intervals: 0.95 if the report has a single reference."""
        return of_each(self.families)

    @property
    def held(self) -> str:
        """The joint confidence level of the block's intervals as text, such as "95%".

        If the report has several references, the text also says that the intervals of all references are
        simultaneous at 95%.
        """
        together = f", those of all {self.families} references together with 95%"
        return f"{100 * self.level:.4g}%" + together * (self.families > 1)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods with runs on all settings, best mean rank first."""
        return self.ranking.methods if self.ranking else tuple(self.cells)

    @property
    def collapsed(self) -> tuple[Collapses, ...]:
        """The collapsed runs of all methods and of the reference, with one entry per cell."""
        compared = (side for comparison in self.all_comparisons for side in comparison.collapsed)
        return tuple(dict.fromkeys([*compared, *self.collapsed_entirely]))

    @property
    def claims(self) -> int:
        """The number of comparisons with simultaneous intervals."""
        return len(self.all_comparisons)

    @property
    def without_examples(self) -> tuple[TaskAndBackbone, ...]:
        """The settings on which some comparison's interval covers the noise of seeds only.

        On the block's other settings, all intervals also cover the noise of test examples.
        """
        alone = {
            setting
            for comparison in self.all_comparisons
            for setting, part in zip(comparison.settings, comparison.effect.parts, strict=True)
            if part.count is None
        }
        return tuple(setting for setting in self.settings if setting in alone)


@dataclass(frozen=True)
class Analysis:
    """The results in a report, with everything computed from them."""

    study: Study
    #: The smallest difference that matters, by metric.
    thresholds: Mapping[str, float]
    blocks: tuple[Block, ...]
    #: Limits of the whole report, including the study's notes.
    notes: tuple[str, ...]
    #: The contributions of test examples, and the variance from tuning, behind the intervals.
    evidence: Evidence = field(repr=False)
    #: The collapsed runs of cells that have any, by the cell's number.
    collapses: Mapping[int, Collapses]


def analyse(study: Study, threshold: CustomThresholds = None) -> Analysis:
    """Computes all comparisons and statistics of a report.

    `threshold` is the smallest difference that matters. Raises UserError as `thresholds` does.
    """
    matters = thresholds((cell.metric for cell in study.all_cells if cell.metric), threshold)
    of_cells = recipes(study)
    budgets = sorted(dict.fromkeys(cell.budget for cell in study.all_cells), key=block_order)
    collapsed = collapses(study)
    begun = [
        _with_reference(study, block, of_cells)
        for budget in budgets
        for block in _blocks(study, budget, of_cells, matters, collapsed)
    ]
    evidence = gather(study, _needed(begun))
    blocks = tuple(_finished(evidence, block, collapsed) for block in begun)
    notes = (*study.notes, *evidence.notes, *_limits(study))
    return Analysis(study, matters, blocks, notes, evidence, collapsed)


# --- which methods are compared ---


@dataclass(frozen=True)
class Comparable:
    """Methods of one budget with one metric and one recipe."""

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
    study: Study, budget: str, cells: Sequence[Cell], of_cells: Mapping[int, Recipe]
) -> Iterator[Comparable]:
    """Yields the methods of a budget in groups with one metric and one recipe.

    The largest group of a metric comes first. `cells` are those of the budget. `of_cells` has the recipe of
    each cell by its number.
    """
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
    """Returns the metric and the task. The task is empty unless scores have the unit of its targets."""
    return metric, task if metric and METRICS.get(metric).in_units else ""


def _apart(group: Alike, first: Alike) -> str:
    if group is first:
        return ""
    return (
        f"Run with another recipe than {listed(list(first.methods)[:3])} "
        f"({in_words(first.differs(group.cells))}): shown apart, and no verdict compares them."
    )


def _blocks(
    study: Study,
    budget: str,
    of_cells: Mapping[int, Recipe],
    matters: Mapping[str, float],
    collapsed: Mapping[int, Collapses],
) -> Iterator[Block]:
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
                lost = [cell.number for cells in methods.values() for cell in cells if not cell.finished]
                entirely = tuple(collapsed[number] for number in lost if number in collapsed)
                block = replace(block, collapsed_entirely=entirely)
                yield replace(block, notes=(group.note, *block.notes)) if group.note else block


def _with_entrants(block: Block, methods: Mapping[str, Sequence[Cell]]) -> Block:
    """Fills in the block's settings, the methods that ran on all of them, and why others are left out."""
    by_setting = grouped((cell for cells in methods.values() for cell in cells), lambda cell: cell.setting)
    # A setting where hardly anything has run yet would exclude every method.
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
        notes.append(f"Too few methods have finished runs on {unfinished}: left out below.")
    if left_out:
        notes.append(
            f"{len(left_out)} of {many(len(complete) + len(left_out), 'method')} lack finished runs on "
            "some settings. They are compared on the others, and left out of this budget's means and ranks: "
            f"{listed(left_out)}."
        )
    if note := sign_note(block.metric):
        notes.append(note)
    return replace(
        block,
        settings=settings,
        cells=complete,
        cells_of_part=of_part,
        left_out=left_out,
        notes=tuple(notes),
    )


def _missing(settings: Iterable[TaskAndBackbone], on: Mapping[TaskAndBackbone, Cell]) -> str:
    """Says on which settings a method has no runs. Empty if it has runs on all of them."""
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
    """The numbers of the cells whose predictions the blocks need."""
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
    """Adds comparisons and statistics to the block.

    The block stays unchanged if no method has runs on all its settings.
    """
    if not block.cells:
        return block
    study, methods = evidence.study, {*block.cells, *block.left_out}
    own = [
        cell.number
        for cell in study.all_cells
        if cell.budget == block.budget and cell.method in methods and cell.setting in block.settings
    ]
    reference = block.reference.cells if block.reference else ()
    guards = find_guards(study, study.all_cells, own, reference, collapsed)
    everything, notes = against_reference(
        evidence,
        {**block.cells, **block.cells_of_part},
        block.reference,
        block.threshold,
        block.families,
        collapsed,
        guards,
    )
    comparisons = [each for each in everything if each.method not in block.cells_of_part]
    entrants = Entrants(
        evidence, block.cells, tuple(comparisons), len(everything), block.level, block.threshold
    )
    statistics = {
        statistic: result for statistic in STATISTICS if (result := statistic.compute(entrants)) is not None
    }
    if ranking := statistics.get(RANKS):
        nothing = [setting for setting in block.settings if guards.lost.get(setting) == NOTHING]
        statistics[RANKS] = _without_groups(ranking, block.settings, nothing)
    block = replace(
        block,
        guards=guards,
        of_part=everything[len(comparisons) :],
        entrants=entrants,
        statistics=statistics,
        notes=(*block.notes, *notes),
    )
    comparisons.sort(key=lambda comparison: block.methods.index(comparison.method))
    return replace(block, comparisons=tuple(comparisons))


def _without_groups(
    ranking: Ranking, settings: Sequence[TaskAndBackbone], nothing: Sequence[TaskAndBackbone]
) -> Ranking:
    """The ranking without what the settings on which nothing trained would decide."""
    if not nothing:
        return ranking
    on = zip(settings, ranking.separations_on, strict=False)
    return replace(
        ranking,
        ranks=replace(ranking.ranks, low=None, high=None),
        separations=None,
        separations_on=tuple(None if setting in nothing else each for setting, each in on),
        letters=None,
        notes=(
            *ranking.notes,
            f"Nothing trained on {listed(nothing)}: no rank has an interval, and no groups are known.",
        ),
    )


# --- limits ---


def _limits(study: Study) -> Iterator[str]:
    """Yields notes on too few seeds, a single task, missing seeds and several metrics."""
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
