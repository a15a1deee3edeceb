"""Analyses experiments tuned by studies: the score of every method after k trials of tuning."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

from tensorbench.methods import UserError
from tensorbench.methods.errors import first_few
from tensorbench.metrics import METRICS, bounds, direction
from tensorbench.records.words import OWN_SIZE, Status
from tensorbench.reports.analysis import Comparable, comparable
from tensorbench.reports.collapses import DIVERGED, collapses
from tensorbench.reports.comparisons import find_reference
from tensorbench.reports.evidence import Evidence, gather, scaled
from tensorbench.reports.inference import studies as estimates
from tensorbench.reports.inference.crossed import OnSetting
from tensorbench.reports.inference.effects import Effect, effect, verdict
from tensorbench.reports.inference.intervals import simultaneous
from tensorbench.reports.inference.studies import CompleteStudies
from tensorbench.reports.predictions import predictions
from tensorbench.reports.recipes import Recipe, recipes
from tensorbench.reports.study import (
    CONVERGED,
    NO_ADAPTERS,
    Cell,
    Seed,
    Study,
    TaskAndBackbone,
    block_order,
    grouped,
    kept_trials,
)
from tensorbench.reports.study_blocks import (
    Difference,
    Entrant,
    Estimate,
    Level,
    Sensitivity,
    StudyBlock,
    Transfer,
)
from tensorbench.reports.study_guards import guarded
from tensorbench.reports.thresholds import DEFAULT, CustomThresholds, thresholds
from tensorbench.reports.units import sign_note, unit_of
from tensorbench.reports.words import listed, many

#: The largest number of cells that a note on left-out studies names.
MOST_NAMED = 6


@dataclass(frozen=True)
class StudyAnalysis:
    """Experiments tuned by studies, with everything computed from them."""

    study: Study
    thresholds: Mapping[str, float]
    blocks: tuple[StudyBlock, ...]
    notes: tuple[str, ...]
    #: Those of the notes that name ended studies that are left out, and methods whose trials all failed.
    limits: tuple[str, ...]
    evidence: Evidence = field(repr=False)
    #: The complete studies of each cell, by the cell's number. Cells without a complete study are absent.
    studies: Mapping[int, CompleteStudies] = field(repr=False)

    def score(self, number: int) -> Estimate | None:
        """The score after k trials, for the cell with this number. k is the number of trials in one study.

        None if no study of the cell is complete.
        """
        cell, studies = self.study.all_cells[number], self.studies.get(number)
        if studies is None or cell.studies is None:
            return None
        part = scaled(estimates.of_method(studies, cell.studies.points), self.study, number)
        return _score(self.study.metrics[number], effect([part]))

    def failed(self, seed: Seed) -> bool:
        """Whether a trial failed: it diverged, or its score is far below that of its cell's best trial.

        The best trial is the one with the lowest validation loss. Far means at least `FAILED` points (see
        `tensorbench.reports.inference.studies`). In a cell without a complete study, only divergence counts.
        """
        studies = self.studies.get(seed.cell)
        if seed.score is None or studies is None:
            return seed.failure == DIVERGED
        gain = self.study.direction(seed.cell) * seed.score
        return bool(studies.fails(np.array(gain)))


def analyse_studies(study: Study, threshold: CustomThresholds = None) -> StudyAnalysis:
    """Computes everything in a report on experiments tuned by studies.

    `threshold` is the smallest difference that matters. Raises UserError as `thresholds` does, and if single
    pairs of methods are selected.
    """
    if len(study.compared) > 1 or any(study.compared.values()):
        raise UserError("pairs: not of experiments tuned by studies; give --method and --reference instead")
    matters = thresholds((cell.metric for cell in study.all_cells if cell.metric), threshold)
    evidence = gather(study, (cell.number for cell in study.all_cells if cell.studies))
    chances = _chances(study)
    complete: dict[int, CompleteStudies] = {}
    incomplete: defaultdict[str, list[Cell]] = defaultdict(list)
    left_out: defaultdict[str, list[Cell]] = defaultdict(list)
    for cell in study.all_cells:
        if cell.studies:
            numbers, unfinished, reasons = _complete(cell, study.of_cell(cell.number))
            chance = chances.get(cell.setting)
            if numbers and chance is None:
                reasons.append("all studies (no trial on the task finished, so chance is unknown)")
            elif chance is not None and numbers:
                complete[cell.number] = _studies(evidence, cell, numbers, chance)
            for reason in unfinished:
                incomplete[reason].append(cell)
            for reason in reasons:
                left_out[reason].append(cell)
    collapsed = collapses(study)
    blocks = tuple(
        guarded(study, block, _scored(study, complete, block.k), collapsed)
        for block in _blocks(study, complete, matters)
    )
    limits = (*_left_out(left_out, study), *_all_failed(complete, study))
    notes = (*study.notes, *evidence.notes, *_left_out(incomplete, study), *limits)
    return StudyAnalysis(study, matters, blocks, notes, limits, evidence, complete)


# --- the complete studies of each cell ---


def _complete(cell: Cell, seeds: Sequence[Seed]) -> tuple[tuple[int, ...], list[str], list[str]]:
    """The numbers of a cell's complete studies, and the reasons why its other studies are left out.

    The reasons are in two lists: first those of studies that have not ended, then all others.
    """
    assert cell.studies is not None
    ended = kept_trials(cell.studies, seeds)
    numbers, unfinished, reasons = [], [], []
    for study, trials in sorted(_by_study(seeds).items()):
        lost = [seed for seed in trials if seed.status == Status.FAILED and seed.failure != DIVERGED]
        silent = [seed for seed in trials if seed.finished and seed.validation_loss is None]
        if study not in ended:
            done = sum(seed.finished or seed.failure == DIVERGED for seed in trials)
            unfinished.append(f"study {study} is incomplete ({done} of {cell.studies.points} trials ended)")
        elif lost:
            kinds = listed(sorted({seed.failure for seed in lost}))
            reasons.append(f"study {study} lost {many(len(lost), 'trial')} ({kinds})")
        elif silent:
            reasons.append(f"study {study} has trials without a validation loss")
        else:
            numbers.append(study)
    return tuple(numbers), unfinished, reasons


def _by_study(seeds: Sequence[Seed]) -> dict[int, list[Seed]]:
    placed = (seed for seed in seeds if seed.study is not None)
    return grouped(placed, lambda seed: int(seed.study or 0))


def _left_out(reasons: Mapping[str, Sequence[Cell]], study: Study) -> Iterator[str]:
    every = sum(cell.studies is not None for cell in study.all_cells)
    for reason, cells in reasons.items():
        whose = first_few([f"{cell.method} on {cell.task}" for cell in cells], MOST_NAMED)
        if len(cells) == every:
            whose = "all methods on all tasks"
        yield f"Left out: {reason} of {whose}."


def _all_failed(complete: Mapping[int, CompleteStudies], study: Study) -> Iterator[str]:
    cells = [study.all_cells[number] for number, studies in complete.items() if studies.failed.all()]
    if cells:
        yield (
            f"All trials failed of {listed(f'{cell.method} on {cell.task}' for cell in cells)}: the score "
            "shown is that of chance, and no learning rate is advised."
        )


def _studies(evidence: Evidence, cell: Cell, numbers: Sequence[int], chance: float) -> CompleteStudies:
    """A cell's complete studies with these numbers. Diverged trials get the score by chance (`chance`)."""
    assert cell.studies is not None
    study, sign = evidence.study, evidence.study.direction(cell.number)
    metric = study.metrics[cell.number]
    by_study = _by_study(study.of_cell(cell.number))
    trials = [sorted(by_study[number], key=lambda seed: seed.point or 0) for number in numbers]
    shape = len(numbers), cell.studies.points
    every = list(chain.from_iterable(trials))
    runs = evidence.of_runs(cell.number, [seed.seed for seed in every if seed.finished])
    by_example, test_set = None, None
    if runs and len({run.test_set for run in runs}) == 1:
        test_set, examples = runs[0].test_set, len(runs[0].values)
        values = iter(runs)
        rows = [next(values).values if seed.finished else np.full(examples, chance) for seed in every]
        by_example = np.array(rows, dtype=np.float32).reshape(*shape, examples)
    scores = [chance if seed.score is None else sign * seed.score for seed in every]
    losses = [np.inf if seed.validation_loss is None else seed.validation_loss for seed in every]
    return CompleteStudies(
        losses=np.array(losses).reshape(shape),
        scores=np.array(scores).reshape(shape),
        numbers=tuple(numbers),
        offsets=np.array([seed.offset for seed in every], dtype=float).reshape(shape),
        by_example=by_example,
        test_set=test_set,
        point=DEFAULT * METRICS.get(metric).point * study.size(cell.number) if metric else DEFAULT,
        chance=chance,
    )


def _chances(study: Study) -> dict[TaskAndBackbone, float]:
    """The score by chance on each setting. Larger is better.

    The score by chance is that of the labels in random order (see `Metric.by_chance`), so that it is the same
    in every selection of trials. If no labels are stored, or the metric has no such score, it is the worst
    score on the setting. Settings on which no trial has finished are absent.
    """
    chances: dict[TaskAndBackbone, float] = {}
    finished = grouped((seed for seed in study.all_seeds if seed.finished), lambda seed: seed.cell)
    by_setting = grouped(study.all_cells, lambda cell: cell.setting)
    for setting, cells in by_setting.items():
        seeds = [seed for cell in cells for seed in finished.get(cell.number, [])]
        scores = [study.direction(seed.cell) * seed.score for seed in seeds if seed.score is not None]
        if not scores:
            continue
        chances[setting] = min(scores)
        metric = METRICS.get(study.all_cells[seeds[0].cell].metric)
        stored = predictions(study.experiment(seeds[0].experiment), [seeds[0].trial_id], metric)
        for answers in stored.values():
            with METRICS.blaming(metric.name):
                chance = metric.by_chance(answers.labels)
            if chance is not None:
                chances[setting] = metric.sign * chance
    return chances


# --- blocks ---


def _blocks(
    study: Study, complete: Mapping[int, CompleteStudies], matters: Mapping[str, float]
) -> Iterator[StudyBlock]:
    adapters = [cell for cell in study.all_cells if cell.studies and cell.family not in NO_ADAPTERS]
    joined, made = block_budgets(cell.budget for cell in adapters), recipes(study)
    by_budget = grouped(adapters, lambda cell: joined[cell.budget])
    for budget in sorted(by_budget, key=block_order):
        for group in comparable(study, budget, by_budget[budget], made):
            block = _block(study, complete, group, budget, made)
            if block is not None:
                block = replace(block, threshold=matters.get(group.metric, _threshold(block)))
                block = _compared(study, block, complete)
                yield replace(block, notes=(group.note, *block.notes)) if group.note else block


def block_budgets(budgets: Iterable[str]) -> dict[str, str]:
    """Maps each budget to the budget under which its methods are compared.

    Every budget is mapped to itself, with one exception: if methods of fixed size occur beside exactly one
    budget, they are compared under that budget. One comparison then answers which method to use.
    """
    every = set(budgets)
    sized = every - {OWN_SIZE}
    own = next(iter(sized)) if len(sized) == 1 else OWN_SIZE
    return {budget: own if budget == OWN_SIZE else budget for budget in every}


def _block(
    study: Study,
    complete: Mapping[int, CompleteStudies],
    group: Comparable,
    budget: str,
    made: Mapping[int, Recipe],
) -> StudyBlock | None:
    """A block with its methods, before they are compared. None if too few studies are complete."""
    methods = group.methods
    every, least = grouped(group.cells, lambda cell: cell.setting), min(2, len(methods))
    settings = tuple(s for s, cells in every.items() if sum(c.number in complete for c in cells) >= least)
    if not settings:
        return None
    notes = []
    if absent := [setting for setting in every if setting not in settings]:
        notes.append(f"Too few methods have a complete study on {listed(absent)}: not compared there.")
    entrants, unfinished = [], []
    for method, cells in methods.items():
        on = {cell.setting: cell for cell in cells if cell.number in complete}
        if lacking := [setting for setting in settings if setting not in on]:
            notes.append(f"{method} has no complete study on {listed(lacking)} and is not compared.")
            unfinished.append(method)
            continue
        entrants.append([on[setting] for setting in settings])
    if not entrants:
        return None
    first = entrants[0]
    (named,) = study.compared
    reference, missing = find_reference(study, budget, first, made, named)
    if reference and not all(number in complete for number in reference.cells):
        missing = [f"{reference.method} has no complete study on some task: nothing is compared with it."]
        reference = None
    # Methods with the same recipe differ at most in the number of studies.
    plan = max((c.studies for cells in entrants for c in cells if c.studies), key=lambda plan: plan.studies)
    return StudyBlock(
        budget=budget,
        metric=group.metric,
        evaluated=next((cell.evaluated for cell in group.cells if cell.evaluated), "test"),
        title=group.title,
        unit=unit_of(group.metric, next((cell.unit for cell in group.cells if cell.unit), "")),
        threshold=max(complete[cell.number].point for cell in first),
        settings=settings,
        k=plan.points,
        ks=plan.ks,
        reference=reference,
        entrants=tuple(_entrant(study, cells, complete, plan.ks) for cells in entrants),
        unfinished=tuple(unfinished),
        levels=(),
        sources=(),
        notes=(*filter(None, [sign_note(group.metric)]), *notes, *missing),
    )


def _threshold(block: StudyBlock) -> float:
    """The default threshold. If scores have the unit of the targets, it depends on the reference's score."""
    metric, own = METRICS.get(block.metric), block.reference
    mean = next((e.means.get(block.k) for e in block.entrants if own and e.cells == own.cells), None)
    if mean is None or not metric.in_units:
        return block.threshold
    return DEFAULT * metric.point * (abs(mean.value) or 1.0)


def _entrant(
    study: Study, cells: Sequence[Cell], complete: Mapping[int, CompleteStudies], ks: Sequence[int]
) -> Entrant:
    studies = tuple(complete[cell.number] for cell in cells)
    fewest = min(each.trials for each in studies)
    scores: dict[int, tuple[Estimate, ...]] = {}
    means: dict[int, Estimate] = {}
    for k in (k for k in ks if k <= fewest):
        parts = [
            _part(study, cell, estimates.of_method(each, k))
            for cell, each in zip(cells, studies, strict=True)
        ]
        metric = study.metrics[cells[0].number]
        scores[k] = tuple(_score(metric, effect([part])) for part in parts)
        means[k] = _score(metric, effect(parts))
    failures = sum(int(each.failed.sum()) for each in studies)
    return Entrant(
        method=cells[0].method,
        family=cells[0].family,
        parameters=cells[0].parameters,
        cells=tuple(cell.number for cell in cells),
        studies=studies,
        scores=scores,
        means=means,
        differences={},
        sensitivity=Sensitivity(
            near=float(np.mean([estimates.share_near(each) for each in studies]))
            if estimates.enough_to_smooth(*studies)
            else None,
            failed=float(np.mean([estimates.share_failed(each) for each in studies])),
            failures=failures,
            trials=sum(each.trials for each in studies),
            near_difference=None,
            failed_difference=None,
        ),
        transfer=None,
    )


def _part(study: Study, cell: Cell, part: OnSetting) -> OnSetting:
    return scaled(part, study, cell.number)


def _score(metric: str, score: Effect) -> Estimate:
    """Converts a score to stored units, and clips its interval to possible scores."""
    sign, (least, most) = direction(metric), bounds(metric)
    interval = score.interval(simultaneous(1))
    if interval is not None:
        low, high = sorted(sign * bound for bound in interval)
        interval = max(low, least), min(high, most)
    return Estimate(sign * score.difference, interval)


# --- comparisons ---


def _compared(study: Study, block: StudyBlock, complete: Mapping[int, CompleteStudies]) -> StudyBlock:
    """Adds to the block the differences from the reference, the levels and the sources of variance."""
    reference = [complete[number] for number in block.reference.cells] if block.reference else None
    own = block.reference.cells if block.reference else ()
    rivals = [entrant for entrant in block.entrants if entrant.cells != own]
    entrants = [entrant for entrant in block.entrants if entrant.cells == own]
    claims = len(rivals)
    for entrant in rivals:
        if reference is not None:
            entrant = _against(study, block, entrant, reference, claims)
        entrants.append(entrant)
    entrants = [_transferred(study, block, entrant, len(entrants)) for entrant in entrants]
    sign = direction(block.metric)
    entrants.sort(key=lambda entrant: (entrant.cells != own, -sign * entrant.means[block.k].value))
    of_settings = [[entrant.studies[place] for entrant in entrants] for place in range(len(block.settings))]
    return replace(
        block,
        entrants=tuple(entrants),
        levels=tuple(_levels(study, block, complete, reference)),
        sources=tuple(estimates.sources(studies, block.k) for studies in of_settings),
    )


def _against(
    study: Study, block: StudyBlock, entrant: Entrant, reference: Sequence[CompleteStudies], claims: int
) -> Entrant:
    """Adds the differences from the reference to a method.

    A method that shares no study with the reference on some setting stays unchanged.
    """
    cells = [study.all_cells[number] for number in entrant.cells]
    sides = list(zip(cells, entrant.studies, reference, strict=True))
    if not all({*own.numbers} & {*other.numbers} for _, own, other in sides):
        return entrant
    differences = {}
    for k in block.ks:
        pairs = [estimates.paired(own, other) for _, own, other in sides]
        if all(own.trials >= k for own, _ in pairs):
            parts = [_part(study, cell, estimates.of_pair(own, other, k)) for cell, own, other in sides]
            differences[k] = _difference(parts, claims, block.threshold)

    def shares(share: Callable[[CompleteStudies], float]) -> Difference:
        parts = [replace(estimates.of_share(share, own, other), limit=1.0) for _, own, other in sides]
        # Both shares of all methods are one family.
        return _difference(parts, 2 * claims, 0.0)

    sensitivity = replace(
        entrant.sensitivity,
        near_difference=shares(estimates.share_near)
        if estimates.enough_to_smooth(*entrant.studies, *reference)
        else None,
        failed_difference=shares(estimates.share_failed),
    )
    return replace(entrant, differences=differences, sensitivity=sensitivity)


def _difference(parts: Sequence[OnSetting], claims: int, threshold: float) -> Difference:
    over_all, each = effect(parts), [effect([part]) for part in parts]
    interval = over_all.interval(simultaneous(claims))
    intervals = tuple(part.interval(simultaneous(claims * len(parts))) for part in each)
    return Difference(
        over_all,
        interval,
        verdict(interval, threshold),
        intervals,
        tuple(verdict(bounds_, threshold) for bounds_ in intervals),
    )


def _transferred(study: Study, block: StudyBlock, entrant: Entrant, claims: int) -> Entrant:
    """Adds the transfer of rates to a method.

    A method stays unchanged if the block has a single setting, if the settings share no study, if most of the
    method's trials failed at every rate of some setting, or if some setting has too few trials to smooth.
    """
    if len(block.settings) < 2 or not set.intersection(*({*each.numbers} for each in entrant.studies)):
        return entrant
    if not (estimates.enough_to_smooth(*entrant.studies) and estimates.have_best_rates(*entrant.studies)):
        return entrant
    cell = study.all_cells[entrant.cells[0]]
    over_all = effect([_part(study, cell, estimates.of_transfer(entrant.studies))])
    interval = over_all.interval(simultaneous(claims))
    costs = tuple(float(cost) for cost in estimates.transfer(entrant.studies))
    transfer = Transfer(over_all.difference, interval, verdict(interval, block.threshold), costs)
    return replace(entrant, transfer=transfer)


def _levels(
    study: Study,
    block: StudyBlock,
    complete: Mapping[int, CompleteStudies],
    reference: Sequence[CompleteStudies] | None,
) -> Iterator[Level]:
    """Yields the converged head, the head alone and full fine-tuning, if they have run."""
    sign = direction(block.metric)
    for family in (CONVERGED, *(name for name in NO_ADAPTERS if name != CONVERGED)):
        cells = {
            cell.setting: cell
            for cell in reversed(study.all_cells)
            if cell.family == family and study.metrics[cell.number] == block.metric
        }
        scores: list[float | None] = []
        differences: list[float | None] = []
        for place, setting in enumerate(block.settings):
            gain = _gain(cells.get(setting), complete, block.k)
            scores.append(None if gain is None else sign * gain)
            studies = None if reference is None or reference[place].trials < block.k else reference[place]
            level = (
                None if studies is None or gain is None else gain - estimates.score_after(studies, block.k)
            )
            differences.append(level)
        if any(score is not None for score in scores):
            every = [each for each in differences if each is not None]
            mean = float(np.mean(every)) if len(every) == len(differences) else None
            method = next(cell.method for cell in cells.values())
            yield Level(method, family, tuple(scores), tuple(differences), mean)


def _scored(study: Study, complete: Mapping[int, CompleteStudies], k: int) -> list[Cell]:
    """All cells. Those with studies have their score after k trials as their mean."""
    scored = []
    for cell in study.all_cells:
        if cell.studies and (gain := _gain(cell, complete, k)) is not None:
            # A cell whose trials all diverged has no metric of its own.
            metric, mean = study.metrics[cell.number], study.direction(cell.number) * gain
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
