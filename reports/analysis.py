"""Computes each method's score after k trials, and compares each method with the reference.

Without tuning, each seed counts as a study of one trial. The score after one trial is then the mean over
seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tensorbench.records.metrics import METRICS, bounds, direction
from tensorbench.reports.blocks import Block, Entrant, Estimate, Sensitivity
from tensorbench.reports.collapses import DIVERGED, Collapses, collapses
from tensorbench.reports.comparable import Comparable, block_budgets, comparable, find_reference
from tensorbench.reports.comparisons import compared, failures_of, gain_of, moderated_on_settings, on_setting
from tensorbench.reports.complete import Material, complete_studies
from tensorbench.reports.evidence import Evidence, gather
from tensorbench.reports.guards import find_guards, guarded
from tensorbench.reports.inference import rates as of_rates
from tensorbench.reports.inference import studies as estimates
from tensorbench.reports.inference.crossed import OnSetting
from tensorbench.reports.inference.effects import Effect, effect
from tensorbench.reports.inference.intervals import LEAST_SEEDS, simultaneous
from tensorbench.reports.inference.studies import CompleteStudies
from tensorbench.reports.ranks import Allocations, find_allocations
from tensorbench.reports.recipes import recipes
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
    notes: tuple[str, ...]
    #: The subset of `notes` on ended studies that are left out, and on methods whose trials all failed.
    limits: tuple[str, ...]
    #: Sentences on problems of cells that belong to no block. Reports show them before all answers.
    faults: tuple[str, ...]
    evidence: Evidence = field(repr=False)
    #: The complete studies of each cell, by the cell's number. Cells without a complete study are absent.
    studies: Mapping[int, CompleteStudies] = field(repr=False)
    #: The collapsed seeds or kept trials of cells that have any, by the cell's number.
    collapses: Mapping[int, Collapses]

    def score(self, number: int) -> Estimate | None:
        """The score after k trials of the cell with this number. k is the number of trials in one study.

        None if no study of the cell is complete.
        """
        studies = self.studies.get(number)
        if studies is None:
            return None
        k = studies.losses.shape[1]
        for block in self.blocks:
            for entrant in block.methods:
                if number in entrant.cells and k in entrant.scores:
                    return entrant.scores[k][entrant.cells.index(number)]
        part = on_setting(self.results, number, estimates.of_method(studies, k))
        return _score(self.results.metrics[number], effect([part]))

    def failed(self, seed: Seed) -> bool:
        """Whether a trial failed: it diverged, or its score is far below that of its cell's best trial.

        The best trial is the one with the lowest validation loss. Far means at least `FAILED` points (see
        `tensorbench.reports.inference.studies`). Only divergence counts in a cell that was not tuned, or that
        has no complete study.
        """
        studies = self.studies.get(seed.cell)
        if seed.score is None or studies is None or not studies.tuned:
            return seed.failure == DIVERGED
        gain = self.results.direction(seed.cell) * seed.score
        return bool(studies.fails(np.array(gain)))


def analyse(results: Results, threshold: CustomThresholds = None) -> Analysis:
    """Computes all statistics, verdicts and notes of a report.

    `threshold` is the smallest difference that matters. Raises UserError if it is invalid (see `thresholds`).
    """
    matters = thresholds((cell.metric for cell in results.all_cells if cell.metric), threshold)
    evidence = gather(results, _needed(results))
    studies, unfinished, limits = complete_studies(evidence)
    material = Material(results, studies, recipes(results), collapses(results))

    def judged(block: Block) -> Block:
        return guarded(material, compared(material, block), _scored(material, block.k))

    blocks = tuple(map(judged, _blocks(material, matters)))
    return Analysis(
        results,
        matters,
        blocks,
        allocations=tuple(find_allocations(results, blocks, judged)),
        notes=(*results.notes, *evidence.notes, *unfinished, *limits, *_extent(results)),
        limits=tuple(limits),
        faults=tuple(_faults(material, blocks)),
        evidence=evidence,
        studies=studies,
        collapses=material.collapses,
    )


def _needed(results: Results) -> list[int]:
    """The numbers of the cells whose predictions comparisons need. Cells with studies come first."""
    tuned = [cell.number for cell in results.all_cells if cell.studies]
    others = [cell for cell in results.all_cells if not cell.studies]
    # Methods without adapter are only paired with a reference that was not tuned either.
    if tuned and all(cell.family in NO_ADAPTERS for cell in others):
        return tuned
    return tuned + [cell.number for cell in others]


def _extent(results: Results) -> Iterator[str]:
    """Yields notes on several metrics and, without tuning, on few seeds, a single task and missing seeds."""
    cells: Sequence[Cell] = results.all_cells
    metrics = list(dict.fromkeys(cell.metric for cell in cells if cell.metric))
    if len(metrics) > 1:
        yield (
            f"Scores are of several metrics ({listed(metrics)}): they are not averaged, and each has its "
            "threshold."
        )
    one_task = len({cell.task for cell in cells}) == 1
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
    if one_task:
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
    used = {number for block in blocks for entrant in block.methods for number in entrant.cells}
    rest = [cell.number for cell in results.all_cells if cell.number not in used]
    named = [cell for cell in results.all_cells if cell.method == results.reference]
    # By default the reference is LoRA without options.
    plain = [c for c in results.all_cells if c.family == REFERENCE and c.method == c.title]
    references = [cell.number for cell in named or plain if cell.number in rest]
    said = {sentence for block in blocks for sentence in block.guards}
    most = max((block.k for block in blocks), default=1)
    guards = find_guards(material, _scored(material, most), rest, references)
    yield from (sentence for sentence in guards.sentences if sentence not in said)


# --- blocks ---


def _blocks(material: Material, matters: Mapping[str, float]) -> Iterator[Block]:
    """Yields the blocks with their thresholds, but without comparisons."""
    results = material.results
    every = results.all_cells
    cells = [cell for cell in every if cell.family not in NO_ADAPTERS] or list(every)
    joined = block_budgets(cell.budget for cell in cells)
    by_budget = grouped(cells, lambda cell: joined[cell.budget])
    for budget in sorted(by_budget, key=block_order):
        for group in comparable(results, budget, by_budget[budget], material.recipes):
            block = _block(material, group, budget)
            if block is not None:
                yield replace(block, threshold=matters.get(group.metric, _threshold(block)))


def _block(material: Material, group: Comparable, budget: str) -> Block | None:
    """A block with its methods, before they are compared. None if too few studies are complete."""
    complete, methods = material.studies, group.methods
    # Methods of one group have the same tuning on each setting. Settings may differ in trials per study, so k
    # is the smallest number.
    plan = min((c.studies for c in group.cells if c.studies), key=lambda plan: plan.points, default=None)
    lacking_words = "a complete study" if plan else "a finished seed"
    every, least = grouped(group.cells, lambda cell: cell.setting), min(2, len(methods))
    # A setting on which hardly anything has run yet would exclude every method.
    settings = tuple(s for s, cells in every.items() if sum(c.number in complete for c in cells) >= least)
    if not settings:
        return None
    notes = []
    if absent := [setting for setting in every if setting not in settings]:
        notes.append(f"Too few methods have {lacking_words} on {listed(absent)}: not compared there.")
    ks = plan.ks if plan else (1,)
    everywhere: list[list[Cell]] = []
    somewhere: list[list[Cell]] = []
    left_out: dict[str, str] = {}
    for method, cells in methods.items():
        planned = {cell.setting for cell in cells}
        on = {cell.setting: cell for cell in cells if cell.number in complete}
        if lacking := [setting for setting in settings if setting not in on]:
            unplanned = [setting for setting in lacking if setting not in planned]
            why = (
                f"is not planned on {listed(unplanned)}"
                if unplanned
                else f"lacks {lacking_words} on {listed(lacking)}"
            )
            left_out[method] = why
        own = [on[setting] for setting in settings if setting in on]
        if own:
            (somewhere if lacking else everywhere).append(own)
    if left_out:
        whose = (f"{method} {why}" for method, why in left_out.items())
        notes.append(f"Compared on other tasks alone, if on any, and in no mean: {'; '.join(whose)}.")
    if not everywhere:
        return None
    first = everywhere[0]
    reference, missing = find_reference(material.results, budget, first, material.recipes)
    if reference and not all(number in complete for number in reference.cells):
        missing = [f"{reference.method} lacks {lacking_words} on some task: nothing is compared with it."]
        reference = None
    numbers = [cell.number for own in (*everywhere, *somewhere) for cell in own]
    failures = failures_of(material, numbers, reference)
    scores = {
        k: {n: estimates.of_method(complete[n], k, failures) for n in numbers if complete[n].most >= k}
        for k in ks
    }
    collapsed = material.collapses
    scores = {k: moderated_on_settings(material.results, each, collapsed) for k, each in scores.items()}
    entrants, part = (
        tuple(_entrant(material, own, scores) for own in every) for every in (everywhere, somewhere)
    )
    return Block(
        budget=budget,
        metric=group.metric,
        evaluated=next((cell.evaluated for cell in group.cells if cell.evaluated), "test"),
        title=group.title,
        unit=unit_of(group.metric, next((cell.unit for cell in group.cells if cell.unit), "")),
        threshold=max(complete[cell.number].point for cell in first),
        settings=settings,
        k=plan.points if plan else 1,
        ks=ks,
        tuned=plan is not None and plan.points > 1,
        reference=reference,
        entrants=entrants,
        part=part,
        left_out=left_out,
        levels=(),
        sources=(),
        notes=tuple(filter(None, [group.note, sign_note(group.metric), *notes, *missing])),
    )


def _threshold(block: Block) -> float:
    """A block's default threshold. If scores have the unit of the targets, it scales with the reference's."""
    metric, own = METRICS.get(block.metric), block.reference
    mean = next((e.means.get(block.k) for e in block.entrants if own and e.cells == own.cells), None)
    if mean is None or not metric.in_units:
        return block.threshold
    return DEFAULT * metric.point * (abs(mean.value) or 1.0)


def _entrant(
    material: Material, cells: Sequence[Cell], parts: Mapping[int, Mapping[int, OnSetting]]
) -> Entrant:
    """The method with these cells. `parts` has scores after k trials, by k and by the cell's number."""
    studies = tuple(material.studies[cell.number] for cell in cells)
    metric = material.results.metrics[cells[0].number]
    scores: dict[int, tuple[Estimate, ...]] = {}
    means: dict[int, Estimate] = {}
    for k, of_cells in parts.items():
        if all(cell.number in of_cells for cell in cells):
            own = [of_cells[cell.number] for cell in cells]
            scores[k] = tuple(_score(metric, effect([part])) for part in own)
            means[k] = _score(metric, effect(own))
    return Entrant(
        method=cells[0].method,
        family=cells[0].family,
        parameters=cells[0].parameters,
        settings=tuple(cell.setting for cell in cells),
        cells=tuple(cell.number for cell in cells),
        studies=studies,
        scores=scores,
        means=means,
        differences={},
        sensitivity=_sensitivity(studies) if studies[0].tuned else None,
    )


def _sensitivity(studies: Sequence[CompleteStudies]) -> Sensitivity:
    """The sensitivity of a method with these studies, without differences from the reference."""
    smooth = of_rates.enough_to_smooth(*studies)
    return Sensitivity(
        near=float(np.mean([of_rates.share_near(each) for each in studies])) if smooth else None,
        failed=float(np.mean([estimates.share_failed(each) for each in studies])),
        failures=sum(int(each.failed.sum()) for each in studies),
        trials=sum(each.trials for each in studies),
        near_difference=None,
        failed_difference=None,
    )


def _score(metric: str, score: Effect) -> Estimate:
    """Converts a score in which larger is better to stored units. Clips its interval to possible scores."""
    sign, (least, most) = direction(metric), bounds(metric)
    interval = score.interval(simultaneous(1))
    if interval is not None:
        low, high = sorted(sign * bound for bound in interval)
        interval = max(low, least), min(high, most)
    return Estimate(sign * score.difference, interval)


def _scored(material: Material, k: int) -> list[Cell]:
    """Returns all cells. In a cell with studies, the score after k trials, if known, replaces the mean."""
    results, scored = material.results, []
    for cell in results.all_cells:
        if cell.studies and (gain := gain_of(cell, material, k)) is not None:
            # A cell whose trials all diverged has no metric of its own.
            metric, mean = results.metrics[cell.number], results.direction(cell.number) * gain
            cell = replace(cell, metric=metric, mean=mean)
        scored.append(cell)
    return scored
