"""Computes each method's score after k trials, and compares each method with the reference.

Without tuning, each seed counts as a study of one trial. The score after one trial is then the mean over
seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from statistics import fmean

import numpy as np

from tensorbench.methods import UserError
from tensorbench.records.metrics import METRICS, bounds, direction
from tensorbench.reports.blocks import Block, Entrant, Estimate, Performance
from tensorbench.reports.collapses import DIVERGED, Collapses, collapses
from tensorbench.reports.comparable import Comparable, block_budgets, comparable, find_reference
from tensorbench.reports.comparisons import compared, gain_of, moderated_on_settings, on_setting, unregistered
from tensorbench.reports.complete import Material, complete_studies
from tensorbench.reports.evidence import gather
from tensorbench.reports.guards import find_guards, guarded
from tensorbench.reports.inference.crossed import OnSetting
from tensorbench.reports.inference.effects import Effect, effect
from tensorbench.reports.inference.intervals import LEAST_SEEDS
from tensorbench.reports.inference.studies import CompleteStudies, of_method, pooled_failures, score_after
from tensorbench.reports.ranks import Allocations, OverBudgets, find_allocations, over_budgets
from tensorbench.reports.results import NO_ADAPTERS, REFERENCE, Cell, Results, Seed, block_order, grouped
from tensorbench.reports.thresholds import DEFAULT, CustomThresholds, thresholds
from tensorbench.reports.units import listed, many, sign_note, unit_of


@dataclass(frozen=True)
class Analysis:
    """The results of experiments, with the comparisons and notes that a report shows."""

    results: Results
    #: The smallest difference that matters, by metric.
    thresholds: Mapping[str, float]
    blocks: tuple[Block, ...]
    #: The methods with several allocations of ranks in a block.
    allocations: tuple[Allocations, ...]
    #: The methods that ran under several budgets.
    over_budgets: tuple[OverBudgets, ...]
    notes: tuple[str, ...]
    #: The subset of `notes` on ended studies that are left out, and on methods whose trials all failed.
    limits: tuple[str, ...]
    #: The subset of `notes` on predictions that are missing, unreadable or inconsistent.
    gaps: tuple[str, ...]
    #: Sentences on problems of cells that belong to no block. Reports show them before all answers.
    faults: tuple[str, ...]
    #: The complete studies of each cell, by the cell's number. Cells without a complete study are absent.
    studies: Mapping[int, CompleteStudies] = field(repr=False)
    #: The collapsed seeds or kept trials of each cell of which some run finished or diverged, by its number.
    collapses: Mapping[int, Collapses]

    def score(self, cell: Cell) -> Estimate | None:
        """The score of a cell after the k trials of tuning after which methods are compared.

        None if no study of the cell is complete.
        """
        studies = self.studies.get(cell.number)
        if studies is None:
            return None
        k = cell.studies.k if cell.studies else 1
        for entrant in (entrant for block in self.blocks for entrant in block.methods):
            own = entrant.on.get(cell.setting)
            if own and own.cell.number == cell.number and k in own.scores:
                return own.scores[k]
        part = on_setting(self.results, cell, of_method(studies, k))
        return _score(self.results.metrics[cell.number], effect([part]))

    def failed(self, seed: Seed) -> bool:
        """Whether a trial failed: it diverged, or its score is far below that of its cell's best trial.

        The best trial is the one with the lowest validation loss. Far means at least `FAILED` points (see
        `tensorbench.reports.inference.studies`). Only divergence counts in a cell that was not tuned, or that
        has no complete study.
        """
        studies = self.studies.get(seed.cell)
        if seed.score is None or studies is None or not studies.tuned:
            return seed.failure == DIVERGED
        gain = self.results.direction(self.results.all_cells[seed.cell]) * seed.score
        return bool(studies.fails(np.array(gain)))


def analyse(results: Results, threshold: CustomThresholds = None) -> Analysis:
    """Computes all statistics, verdicts and notes of a report.

    `threshold` is the smallest difference that matters. Raises UserError if it is invalid (see `thresholds`),
    and if it is given for a sequential experiment, whose margin is part of its plan.
    """
    sequential = [each.name for each in results.experiments if each.looked is not None]
    if threshold is not None and sequential:
        raise UserError(
            f"threshold: the plan of {listed(sequential)} states the margin at which methods stop, in "
            "tuning.looks.margin; leave the threshold out"
        )
    matters = thresholds((cell.metric for cell in results.all_cells if cell.metric), threshold)
    by_trial, gaps = gather(results, _needed(results))
    collapsed = collapses(results, by_trial)
    studies, unfinished, limits = complete_studies(results, by_trial, collapsed)
    material = Material(results, studies, collapsed)

    scored = cache(partial(_scored, material))

    def judged(block: Block) -> Block:
        return guarded(material, compared(material, block), scored(block.k))

    blocks = tuple(_registered(results, judged(block)) for block in _blocks(material, matters))
    return Analysis(
        results,
        matters,
        blocks,
        allocations=tuple(find_allocations(results, blocks, judged)),
        over_budgets=tuple(over_budgets(blocks, judged)),
        notes=(*results.notes, *gaps, *unfinished, *limits, *_extent(results, blocks)),
        limits=tuple(limits),
        gaps=tuple(gaps),
        faults=(
            *(fault for experiment in results.experiments for fault in experiment.source.faults),
            *_faults(material, blocks),
        ),
        studies=studies,
        collapses=material.collapses,
    )


def _registered(results: Results, block: Block) -> Block:
    """The block with the comparisons that the looks of sequential experiments made.

    The verdict of any other comparison of their methods says that it was not registered.
    """
    made = [own for each in results.experiments for own in each.registered if own.metric == block.metric]
    if not made or block.reference is None:
        return block
    reference = block.reference.trial_ids

    def registered(entrant: Entrant) -> Entrant:
        own, settings = entrant.trial_ids, tuple(entrant.on)
        for each in made:
            if each.settings == settings and each.own <= own and each.reference <= reference:
                return replace(entrant, differences=each.differences)
        if any(each.looking for each in results.experiments):
            return entrant
        return replace(
            entrant, differences={k: unregistered(each) for k, each in entrant.differences.items()}
        )

    entrants, part = (tuple(map(registered, own)) for own in (block.entrants, block.part))
    return replace(block, entrants=entrants, part=part)


def _needed(results: Results) -> list[Cell]:
    """The cells whose predictions comparisons need. Cells with studies come first."""
    tuned = [cell for cell in results.all_cells if cell.studies]
    others = [cell for cell in results.all_cells if not cell.studies]
    # Methods without adapter are only paired with a reference that was not tuned either.
    if tuned and all(cell.family in NO_ADAPTERS for cell in others):
        return tuned
    return tuned + others


def _extent(results: Results, blocks: Sequence[Block]) -> Iterator[str]:
    """Yields notes on several metrics and, without tuning, on few seeds, a single task and missing seeds.

    Tasks count if methods are compared on them or, if none are, if they are there.
    """
    cells: Sequence[Cell] = results.all_cells
    metrics = list(dict.fromkeys(cell.metric for cell in cells if cell.metric))
    if len(metrics) > 1:
        yield (
            f"Scores are of several metrics ({listed(metrics)}): they are not averaged, and each has its "
            "threshold."
        )
    tasks = {setting.task for block in blocks for setting in block.settings} or {cell.task for cell in cells}
    if not (cells := [cell for cell in cells if not results.is_tuned(cell)]):
        return
    most = max(cell.seeds for cell in cells)
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
    if len(tasks) == 1:
        yield "One task: what is said holds for it, and nothing can be said of other tasks."
    if lost := sum(not cell.complete for cell in cells):
        yield (
            f"{many(lost, 'cell')} of {len(cells):,} incomplete: shown, marked †, with the seeds that they "
            "have."
        )


def _faults(material: Material, blocks: Sequence[Block]) -> Iterator[str]:
    """Yields sentences on problems of cells in no block, such as a reference whose trials all collapsed.

    Sentences that some block already has are left out.
    """
    results = material.results
    used = {cell.number for block in blocks for entrant in block.methods for cell in entrant.cells}
    rest = [cell for cell in results.all_cells if cell.number not in used]
    named = [cell for cell in results.all_cells if cell.method == results.reference]
    # By default the reference is LoRA without options.
    plain = [c for c in results.all_cells if c.family == REFERENCE and c.method == c.title]
    references = [cell for cell in named or plain if cell.number not in used]
    said = {sentence for block in blocks for sentence in block.guards}
    most = max((block.k for block in blocks), default=1)
    guards = find_guards(material, _scored(material, most), rest, references)
    yield from (sentence for sentence in guards.sentences if sentence not in said)


# --- blocks ---


def _blocks(material: Material, matters: Mapping[str, float]) -> Iterator[Block]:
    """Yields the blocks, without comparisons."""
    results = material.results
    every = results.all_cells
    cells = [cell for cell in every if cell.family not in NO_ADAPTERS] or list(every)
    joined = block_budgets(cell.budget for cell in cells)
    by_budget = grouped(cells, lambda cell: joined[cell.budget])
    for budget in sorted(by_budget, key=block_order):
        for group in comparable(results, budget, by_budget[budget]):
            if (block := _block(material, group, budget, matters)) is not None:
                yield block


def _block(material: Material, group: Comparable, budget: str, matters: Mapping[str, float]) -> Block | None:
    """A block with its methods, before they are compared. None if too few studies are complete."""
    complete, methods = material.studies, group.methods
    every = [cell for cells in methods.values() for cell in cells]
    # Methods of one group have the same tuning on each setting. Settings may differ in trials per study, so k
    # is the smallest number.
    plan = min((c.studies for c in every if c.studies), key=lambda plan: plan.points, default=None)
    lacking_words = "a complete study" if plan else "a finished seed"
    there, least = grouped(every, lambda cell: cell.setting), min(2, len(methods))
    # A setting on which hardly anything has run yet would exclude every method.
    settings = tuple(s for s, cells in there.items() if sum(c.number in complete for c in cells) >= least)
    if not settings:
        return None
    notes = []
    if absent := [setting for setting in there if setting not in settings]:
        notes.append(f"Too few methods have {lacking_words} on {listed(absent)}: not compared there.")
    k, ks = (plan.k, plan.ks) if plan else (1, (1,))
    everywhere: list[list[Cell]] = []
    somewhere: list[list[Cell]] = []
    left_out: dict[str, str] = {}
    for method, cells in methods.items():
        planned = {cell.setting for cell in cells}
        on = {cell.setting: cell for cell in cells if cell.number in complete}
        if lacking := [setting for setting in settings if setting not in on]:
            unplanned = [setting for setting in lacking if setting not in planned]
            fell = [c.setting for c in cells if c.setting in lacking and material.all_collapsed(c)]
            if unplanned:
                left_out[method] = f"is not planned on {listed(unplanned)}"
            elif fell:
                left_out[method] = f"collapsed in all its runs on {listed(fell)}"
            else:
                left_out[method] = f"lacks {lacking_words} on {listed(lacking)}"
        own = [on[setting] for setting in settings if setting in on]
        if own:
            (somewhere if lacking else everywhere).append(own)
    if left_out:
        whose = (f"{method} {why}" for method, why in left_out.items())
        notes.append(f"Compared on other tasks alone, if on any, and in no mean: {'; '.join(whose)}.")
    if not everywhere:
        return None
    of_reference, missing = find_reference(material.results, budget, everywhere[0])
    if not all(cell.number in complete for cell in of_reference):
        name, of_reference = of_reference[0].method, []
        missing = [f"{name} lacks {lacking_words} on some task: nothing is compared with it."]
    of_cells = {cell.number: complete[cell.number] for own in (*everywhere, *somewhere) for cell in own}
    with_reference = of_cells | {cell.number: complete[cell.number] for cell in of_reference}
    failures = pooled_failures([*with_reference.values()])
    scores = {
        k: moderated_on_settings(
            material.results,
            {n: of_method(studies, k, failures) for n, studies in of_cells.items() if studies.most >= k},
            material.fell,
        ).parts
        for k in ks
    }
    entrants, part = (
        tuple(_entrant(material, own, scores) for own in cells) for cells in (everywhere, somewhere)
    )
    reference = _entrant(material, of_reference, scores) if of_reference else None
    metric, threshold = METRICS.get(group.metric), max(studies.point for studies in entrants[0].studies)
    # If scores have the unit of the targets, the default scales with the reference's score.
    if metric.in_units and reference:
        score = fmean(score_after(each, k) for each in reference.studies)
        threshold = DEFAULT * metric.point * (abs(score) or 1.0)
    return Block(
        budget=budget,
        metric=group.metric,
        evaluated=next((cell.evaluated for cell in every if cell.evaluated), "test"),
        title=group.title,
        unit=unit_of(group.metric, next((cell.unit for cell in every if cell.unit), "")),
        threshold=matters.get(group.metric, threshold) * (plan.looks.margin if plan and plan.looks else 1),
        settings=settings,
        k=k,
        ks=ks,
        tuned=plan is not None and plan.points > 1,
        reference=reference,
        entrants=entrants,
        part=part,
        left_out=left_out,
        levels=(),
        sources={},
        notes=tuple(filter(None, [group.note, sign_note(group.metric), *notes, *missing])),
    )


def _entrant(
    material: Material, cells: Sequence[Cell], parts: Mapping[int, Mapping[int, OnSetting]]
) -> Entrant:
    """The method with these cells. `parts` has scores after k trials, by k and by the cell's number."""
    first, metric = cells[0], material.results.metrics[cells[0].number]
    own = {
        k: {cell.setting: of_cells[cell.number] for cell in cells}
        for k, of_cells in parts.items()
        if all(cell.number in of_cells for cell in cells)
    }
    on = {
        cell.setting: Performance(
            cell,
            material.studies[cell.number],
            {k: _score(metric, effect([each[cell.setting]])) for k, each in own.items()},
            material.collapses.get(cell.number),
        )
        for cell in cells
    }
    means = {k: _score(metric, effect([*each.values()])) for k, each in own.items()}
    return Entrant(first.method, first.family, first.parameters, on, means)


def _score(metric: str, score: Effect) -> Estimate:
    """Converts a score in which larger is better to stored units. Clips its interval to possible scores."""
    sign, (least, most) = direction(metric), bounds(metric)
    interval = score.interval(score.level(1))
    if interval is not None:
        low, high = sorted(sign * bound for bound in interval)
        interval = max(low, least), min(high, most)
    return Estimate(sign * score.difference, interval)


def _scored(material: Material, k: int) -> list[Cell]:
    """Returns all cells. The score after k trials, if known, replaces the mean of each.

    Without studies it is the mean over the runs that did not collapse.
    """
    results, scored = material.results, []
    for cell in results.all_cells:
        if (gain := gain_of(cell, material, k)) is not None:
            # A cell whose trials all diverged has no metric of its own.
            metric, mean = results.metrics[cell.number], results.direction(cell) * gain
            cell = replace(cell, metric=metric, mean=mean)
        scored.append(cell)
    return scored
