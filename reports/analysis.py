"""Analyses results: every method's score after k trials, and its comparison with the reference.

A seed is a study of one point, so that its score after one trial is the mean over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tensorbench.metrics import METRICS, bounds, direction
from tensorbench.reports.blocks import (
    Block,
    Comparison,
    Entrant,
    Estimate,
    Level,
    Sensitivity,
    Transfer,
)
from tensorbench.reports.collapses import DIVERGED, Collapses, collapses
from tensorbench.reports.comparable import Comparable, block_budgets, comparable, find_reference
from tensorbench.reports.complete import complete_studies
from tensorbench.reports.evidence import Evidence, gather
from tensorbench.reports.guards import find_guards, guarded, plain_lora
from tensorbench.reports.inference import studies as estimates
from tensorbench.reports.inference.crossed import OnSetting
from tensorbench.reports.inference.effects import Effect, effect, verdict
from tensorbench.reports.inference.intervals import LEAST_SEEDS, simultaneous
from tensorbench.reports.inference.studies import CompleteStudies
from tensorbench.reports.recipes import Recipe, difference, recipes
from tensorbench.reports.results import (
    CONVERGED,
    NO_ADAPTERS,
    Cell,
    Results,
    Seed,
    TaskAndBackbone,
    block_order,
    grouped,
)
from tensorbench.reports.thresholds import DEFAULT, CustomThresholds, thresholds
from tensorbench.reports.units import sign_note, unit_of
from tensorbench.reports.words import listed, many


@dataclass(frozen=True)
class Analysis:
    """Results with everything computed from them."""

    results: Results
    #: The smallest difference that matters, by metric.
    thresholds: Mapping[str, float]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    #: Those of the notes that name ended studies that are left out, and methods whose trials all failed.
    limits: tuple[str, ...]
    #: What comes before any answer, on cells that belong to no block.
    faults: tuple[str, ...]
    evidence: Evidence = field(repr=False)
    #: The complete studies of each cell, by the cell's number. Cells without a complete study are absent.
    studies: Mapping[int, CompleteStudies] = field(repr=False)
    #: The collapsed seeds or kept trials of cells that have any, by the cell's number.
    collapses: Mapping[int, Collapses]

    def score(self, number: int) -> Estimate | None:
        """The score after k trials, for the cell with this number. k is the number of trials in one study.

        None if no study of the cell is complete.
        """
        studies = self.studies.get(number)
        if studies is None:
            return None
        part = _part(self.results, number, estimates.of_method(studies, studies.losses.shape[1]))
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
    """Computes everything in a report.

    `threshold` is the smallest difference that matters. Raises UserError as `thresholds` does.
    """
    matters = thresholds((cell.metric for cell in results.all_cells if cell.metric), threshold)
    evidence = gather(results, _needed(results))
    ended = complete_studies(evidence)
    complete = ended.studies
    collapsed = collapses(results)
    blocks = tuple(
        guarded(results, block, _scored(results, complete, block.k), collapsed)
        for block in _blocks(results, complete, matters)
    )
    notes = (*results.notes, *evidence.notes, *ended.unfinished, *ended.limits, *_extent(results))
    faults = tuple(_faults(results, blocks, complete, collapsed))
    return Analysis(results, matters, blocks, notes, ended.limits, faults, evidence, complete, collapsed)


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
    cells = results.all_cells
    metrics = list(dict.fromkeys(cell.metric for cell in cells if cell.metric))
    if len(metrics) > 1:
        yield (
            f"Scores are of several metrics ({listed(metrics)}): they are not averaged, and each has its "
            "threshold."
        )
    if any(cell.studies for cell in cells):
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
    if len({cell.task for cell in cells}) == 1:
        yield "One task: what is said holds for it, and nothing can be said of other tasks."
    if lost := sum(not cell.complete for cell in cells):
        yield (
            f"{many(lost, 'cell')} of {len(cells):,} incomplete: shown, marked †, with the seeds that they "
            "have."
        )


def _faults(
    results: Results,
    blocks: Sequence[Block],
    complete: Mapping[int, CompleteStudies],
    collapsed: Mapping[int, Collapses],
) -> Iterator[str]:
    """Yields the guards of the cells in no block, such as a reference whose trials all collapsed."""
    used = {
        number for block in blocks for entrant in (*block.entrants, *block.part) for number in entrant.cells
    }
    rest = [cell.number for cell in results.all_cells if cell.number not in used]
    named = [cell for cell in results.all_cells if cell.method == results.reference]
    references = [cell.number for cell in named or plain_lora(results.all_cells) if cell.number in rest]
    said = {sentence for block in blocks for sentence in block.guards}
    most = max((block.k for block in blocks), default=1)
    guards = find_guards(results, _scored(results, complete, most), rest, references, collapsed)
    yield from (sentence for sentence in guards.sentences if sentence not in said)


def _part(results: Results, number: int, part: OnSetting) -> OnSetting:
    """Adds to a difference the typical size of scores on a cell's task, and the range of its metric."""
    low, high = bounds(results.metrics[number])
    return replace(part, size=results.size(number), limit=high - low)


# --- blocks ---


def _blocks(
    results: Results, complete: Mapping[int, CompleteStudies], matters: Mapping[str, float]
) -> Iterator[Block]:
    every = results.all_cells
    cells = [cell for cell in every if cell.family not in NO_ADAPTERS] or list(every)
    joined, made = block_budgets(cell.budget for cell in cells), recipes(results)
    by_budget = grouped(cells, lambda cell: joined[cell.budget])
    for budget in sorted(by_budget, key=block_order):
        for group in comparable(results, budget, by_budget[budget], made):
            block = _block(results, complete, group, budget, made)
            if block is not None:
                block = replace(block, threshold=matters.get(group.metric, _threshold(block)))
                block = _compared(results, block, complete, made)
                yield replace(block, notes=(group.note, *block.notes)) if group.note else block


def _block(
    results: Results,
    complete: Mapping[int, CompleteStudies],
    group: Comparable,
    budget: str,
    made: Mapping[int, Recipe],
) -> Block | None:
    """A block with its methods, before they are compared. None if too few studies are complete."""
    methods = group.methods
    # Cells of one group were allowed the same tuning.
    plan = max((c.studies for c in group.cells if c.studies), key=lambda plan: plan.studies, default=None)
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
    entrants: list[Entrant] = []
    part: list[Entrant] = []
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
            (part if lacking else entrants).append(_entrant(results, own, complete, ks))
    if left_out:
        whose = (f"{method} {why}" for method, why in left_out.items())
        notes.append(f"Compared on other tasks alone, if on any, and in no mean: {'; '.join(whose)}.")
    if not entrants:
        return None
    first = [results.all_cells[number] for number in entrants[0].cells]
    reference, missing = find_reference(results, budget, first, made)
    if reference and not all(number in complete for number in reference.cells):
        missing = [f"{reference.method} lacks {lacking_words} on some task: nothing is compared with it."]
        reference = None
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
        entrants=tuple(entrants),
        part=tuple(part),
        left_out=left_out,
        levels=(),
        sources=(),
        notes=(*filter(None, [sign_note(group.metric)]), *notes, *missing),
    )


def _threshold(block: Block) -> float:
    """The default threshold. If scores have the unit of the targets, it depends on the reference's score."""
    metric, own = METRICS.get(block.metric), block.reference
    mean = next((e.means.get(block.k) for e in block.entrants if own and e.cells == own.cells), None)
    if mean is None or not metric.in_units:
        return block.threshold
    return DEFAULT * metric.point * (abs(mean.value) or 1.0)


def _entrant(
    results: Results, cells: Sequence[Cell], complete: Mapping[int, CompleteStudies], ks: Sequence[int]
) -> Entrant:
    studies = tuple(complete[cell.number] for cell in cells)
    fewest = min(each.trials for each in studies)
    scores: dict[int, tuple[Estimate, ...]] = {}
    means: dict[int, Estimate] = {}
    for k in (k for k in ks if k <= fewest):
        parts = [
            _part(results, cell.number, estimates.of_method(each, k))
            for cell, each in zip(cells, studies, strict=True)
        ]
        metric = results.metrics[cells[0].number]
        scores[k] = tuple(_score(metric, effect([part])) for part in parts)
        means[k] = _score(metric, effect(parts))
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
    """The shares of one method, without their differences from the reference."""
    smooth = estimates.enough_to_smooth(*studies)
    return Sensitivity(
        near=float(np.mean([estimates.share_near(each) for each in studies])) if smooth else None,
        failed=float(np.mean([estimates.share_failed(each) for each in studies])),
        failures=sum(int(each.failed.sum()) for each in studies),
        trials=sum(each.trials for each in studies),
        near_difference=None,
        failed_difference=None,
    )


def _score(metric: str, score: Effect) -> Estimate:
    """Converts a score to stored units, and clips its interval to possible scores."""
    sign, (least, most) = direction(metric), bounds(metric)
    interval = score.interval(simultaneous(1))
    if interval is not None:
        low, high = sorted(sign * bound for bound in interval)
        interval = max(low, least), min(high, most)
    return Estimate(sign * score.difference, interval)


# --- comparisons ---


def _compared(
    results: Results, block: Block, complete: Mapping[int, CompleteStudies], made: Mapping[int, Recipe]
) -> Block:
    """Adds to the block the comparisons with the reference, the levels and the sources of variance."""
    own = block.reference.cells if block.reference else ()
    on = dict(zip(block.settings, own, strict=True)) if own else {}

    def is_rival(entrant: Entrant) -> bool:
        return entrant.cells != tuple(on.get(setting) for setting in entrant.settings)

    sides = {
        entrant.method: [complete[on[setting]] for setting in entrant.settings]
        for entrant in (*block.entrants, *block.part)
        if on and is_rival(entrant)
    }
    shared = [
        entrant
        for entrant in (*block.entrants, *block.part)
        if entrant.method in sides and _pairs(entrant, sides[entrant.method])
    ]
    notes = [
        f"{method} shares no finished seed with {block.against} on some setting: differences are taken seed "
        "by seed, so there is no comparison."
        for method in sides
        if not block.tuned and method not in {entrant.method for entrant in shared}
    ]
    # Tuned methods count even before they share a study with the reference.
    claims = len(sides) if block.tuned else len(shared)

    def finished(entrant: Entrant) -> Entrant:
        if entrant in shared:
            cells = [on[setting] for setting in entrant.settings]
            entrant = _against(results, block, entrant, sides[entrant.method], claims)
            entrant = replace(entrant, lost=_lost(results, entrant, cells))
        return _transferred(results, block, entrant, len(block.entrants))

    entrants = [finished(entrant) for entrant in block.entrants]
    sign = direction(block.metric)
    entrants.sort(key=lambda entrant: (entrant.cells != own, -sign * entrant.means[block.k].value))
    of_settings = [[entrant.studies[place] for entrant in entrants] for place in range(len(block.settings))]
    block = replace(
        block,
        entrants=tuple(entrants),
        part=tuple(map(finished, block.part)),
        sources=tuple(estimates.sources(studies, block.k) for studies in of_settings),
        notes=(*block.notes, *notes, *_limits(block, entrants)),
    )
    return replace(block, levels=tuple(_levels(results, block, complete, made)))


def _pairs(entrant: Entrant, reference: Sequence[CompleteStudies]) -> bool:
    """Whether a method shares a study with the reference on each of its settings."""
    return all(
        {*own.numbers} & {*other.numbers} for own, other in zip(entrant.studies, reference, strict=True)
    )


def _lost(results: Results, entrant: Entrant, reference: Sequence[int]) -> int:
    """The number of planned pairs of seeds that have not finished. 0 with tuning, whose studies are noted."""
    if entrant.sensitivity is not None:
        return 0
    planned = finished = 0
    for pair in zip(entrant.cells, reference, strict=True):
        both = [{seed.seed: seed.finished for seed in results.of_cell(number)} for number in pair]
        common = both[0].keys() & both[1].keys()
        planned += len(common)
        finished += sum(both[0][seed] and both[1][seed] for seed in common)
    return planned - finished


def _limits(block: Block, entrants: Sequence[Entrant]) -> Iterator[str]:
    """Yields notes on comparisons of seeds without an interval, and on lost pairs of seeds."""
    if block.tuned:
        return
    compared = [(e, e.differences[block.k].effect) for e in entrants if block.k in e.differences]
    silent = [each for _, each in compared if each.interval(simultaneous(1)) is None]
    if few := sum(each.error is None for each in silent):
        yield (
            f"{many(few, 'method')} of {len(compared)} share fewer than {LEAST_SEEDS} seeds with "
            f"{block.against} on some setting: too few to estimate the noise, so there is no verdict."
        )
    if len(silent) > few:
        yield (
            f"All seed pairs of {many(len(silent) - few, 'method')} differ from {block.against} by the same "
            "amount on each setting: the noise is unknown, so there is no verdict."
        )
    if lost := sum(entrant.lost > 0 for entrant, _ in compared):
        yield (
            f"Seed pairs were lost of {many(lost, 'method')} (†): their intervals are of the remaining "
            "pairs, and wider. A method whose runs diverge is never called better, whatever the others score."
        )


def _against(
    results: Results, block: Block, entrant: Entrant, reference: Sequence[CompleteStudies], claims: int
) -> Entrant:
    """Adds the differences from the reference to a method that shares a study with it on each setting."""
    sides = list(zip(entrant.cells, entrant.studies, reference, strict=True))
    places = len(block.settings)
    differences = {}
    for k in block.ks:
        pairs = [estimates.paired(own, other) for _, own, other in sides]
        if all(own.trials >= k for own, _ in pairs):
            parts = [_part(results, cell, estimates.of_pair(own, other, k)) for cell, own, other in sides]
            differences[k] = _comparison(parts, claims, places, block.threshold)
    if entrant.sensitivity is None:
        return replace(entrant, differences=differences)

    def shares(share: Callable[[CompleteStudies], float]) -> Comparison:
        parts = [replace(estimates.of_share(share, own, other), limit=1.0) for _, own, other in sides]
        # Both shares of all methods are one family.
        return _comparison(parts, 2 * claims, places, 0.0)

    sensitivity = replace(
        entrant.sensitivity,
        near_difference=shares(estimates.share_near)
        if estimates.enough_to_smooth(*entrant.studies, *reference)
        else None,
        failed_difference=shares(estimates.share_failed),
    )
    return replace(entrant, differences=differences, sensitivity=sensitivity)


def _comparison(parts: Sequence[OnSetting], claims: int, places: int, threshold: float) -> Comparison:
    """The comparison over these settings, one of `claims` on a block's settings, whose number is `places`."""
    over_all, each = effect(parts), [effect([part]) for part in parts]
    interval = over_all.interval(simultaneous(claims))
    intervals = tuple(part.interval(simultaneous(claims * places)) for part in each)
    return Comparison(
        over_all,
        interval,
        verdict(interval, threshold),
        intervals,
        tuple(verdict(bounds_, threshold) for bounds_ in intervals),
    )


def _transferred(results: Results, block: Block, entrant: Entrant, claims: int) -> Entrant:
    """Adds the transfer of rates to a method.

    A method stays unchanged without tuning, on a single setting, if the settings share no study, if most of
    the method's trials failed at every rate of some setting, or if some setting has too few trials to smooth.
    """
    if len(entrant.settings) < max(2, len(block.settings)) or entrant.sensitivity is None:
        return entrant
    if not set.intersection(*({*each.numbers} for each in entrant.studies)):
        return entrant
    if not (estimates.enough_to_smooth(*entrant.studies) and estimates.have_best_rates(*entrant.studies)):
        return entrant
    over_all = effect([_part(results, entrant.cells[0], estimates.of_transfer(entrant.studies))])
    interval = over_all.interval(simultaneous(claims))
    costs = tuple(float(cost) for cost in estimates.transfer(entrant.studies))
    transfer = Transfer(over_all.difference, interval, verdict(interval, block.threshold), costs)
    return replace(entrant, transfer=transfer)


# --- methods without adapter ---


def _levels(
    results: Results, block: Block, complete: Mapping[int, CompleteStudies], made: Mapping[int, Recipe]
) -> Iterator[Level]:
    """Yields the converged head, the head alone and full fine-tuning, if they have run."""
    compared = {entrant.method for entrant in (*block.entrants, *block.part)} | {block.against}
    levels = []
    on = dict(zip(block.settings, block.reference.cells, strict=True)) if block.reference else {}

    def other_recipe(cell: Cell) -> bool:
        return cell.setting in on and bool(difference(made[cell.number], made[on[cell.setting]]))

    for family in (CONVERGED, *(name for name in NO_ADAPTERS if name != CONVERGED)):
        own = [
            cell
            for cell in results.all_cells
            if cell.family == family
            and results.metrics[cell.number] == block.metric
            and cell.method not in compared
            and results.is_tuned(cell) == block.tuned
        ]
        for of_method in grouped(own, lambda cell: cell.method).values():
            # Of cells with several recipes the one with the reference's counts, or else the first.
            cells: dict[TaskAndBackbone, Cell] = {}
            for cell in sorted(of_method, key=other_recipe):
                cells.setdefault(cell.setting, cell)
            level = _level(results, block, [cells.get(setting) for setting in block.settings], complete, made)
            if level is not None:
                levels.append((level, _paired_level(results, block, level, complete)))
    claims = sum(parts is not None for _, parts in levels)
    for level, parts in levels:
        if parts is None:
            yield level
            continue
        comparison = _comparison(parts, claims, len(block.settings), block.threshold)
        each = tuple(part.difference for part in parts)
        yield replace(level, differences=each, difference=comparison.effect.difference, comparison=comparison)


def _level(
    results: Results,
    block: Block,
    cells: Sequence[Cell | None],
    complete: Mapping[int, CompleteStudies],
    made: Mapping[int, Recipe],
) -> Level | None:
    """The level of a method with these cells, one per setting. None if it has no score."""
    sign, own = direction(block.metric), block.reference
    scores: list[float | None] = []
    differences: list[float | None] = []
    for place, cell in enumerate(cells):
        gain = _gain(cell, complete, block.k)
        scores.append(None if gain is None else sign * gain)
        studies = complete[own.cells[place]] if own else None
        # Seeds compare with seeds of the same recipe. Studies have no recipe that others could share.
        alike = own and cell and (block.tuned or not difference(made[cell.number], made[own.cells[place]]))
        if gain is None or studies is None or studies.trials < block.k or not alike:
            differences.append(None)
        else:
            differences.append(gain - estimates.score_after(studies, block.k))
    if all(score is None for score in scores):
        return None
    every = [each for each in differences if each is not None]
    first = next(cell for cell in cells if cell)
    return Level(
        first.method,
        first.family,
        tuple(cell.number if cell else None for cell in cells),
        tuple(scores),
        tuple(differences),
        float(np.mean(every)) if len(every) == len(differences) else None,
    )


def _paired_level(
    results: Results, block: Block, level: Level, complete: Mapping[int, CompleteStudies]
) -> list[OnSetting] | None:
    """The differences of a method without adapter from the reference, paired by seed.

    None if they share no seed on some setting, or if the reference was tuned.
    """
    if block.tuned or block.reference is None or level.difference is None:
        return None
    parts = []
    for number, other in zip(level.cells, block.reference.cells, strict=True):
        assert number is not None, "a mean difference has a cell on every setting"
        if not {*complete[number].numbers} & {*complete[other].numbers}:
            return None
        parts.append(_part(results, number, estimates.of_pair(complete[number], complete[other], block.k)))
    return parts


def _scored(results: Results, complete: Mapping[int, CompleteStudies], k: int) -> list[Cell]:
    """All cells. Those with studies have their score after k trials as their mean."""
    scored = []
    for cell in results.all_cells:
        if cell.studies and (gain := _gain(cell, complete, k)) is not None:
            # A cell whose trials all diverged has no metric of its own.
            metric, mean = results.metrics[cell.number], results.direction(cell.number) * gain
            cell = replace(cell, metric=metric, mean=mean)
        scored.append(cell)
    return scored


def _gain(cell: Cell | None, complete: Mapping[int, CompleteStudies], k: int) -> float | None:
    """The score of a cell after k trials or, if the cell has no studies, its mean score. Larger is better.

    None if the score is unknown.
    """
    if cell is None or cell.studies is None:
        return cell.gain if cell else None
    studies = complete.get(cell.number)
    return estimates.score_after(studies, k) if studies and studies.trials >= k else None
