"""Comparisons of methods with the reference, which is LoRA by default."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain
from typing import Any, Generic, TypeVar

import numpy as np

from tensorbench.reports.collapses import DIVERGED, Collapses
from tensorbench.reports.evidence import Evidence
from tensorbench.reports.guards import NO_GUARDS, Guards
from tensorbench.reports.inference import power
from tensorbench.reports.inference.crossed import OnSetting, of_seeds
from tensorbench.reports.inference.effects import Answer, Effect, Verdict, effect, verdict, weaker
from tensorbench.reports.inference.intervals import LEAST_SEEDS, Bounds, of_each, simultaneous
from tensorbench.reports.inference.power import Design
from tensorbench.reports.recipes import Differences, Recipe, difference, in_words
from tensorbench.reports.study import FLOOR, OWN_SIZE, REFERENCE, Cell, Study, TaskAndBackbone, grouped
from tensorbench.reports.words import many


@dataclass(frozen=True)
class Reference:
    """The method with which the other methods of a block are compared."""

    method: str
    #: The budget of the reference's cells. It differs from the block's budget if the reference was not run
    #: under the block's budget.
    budget: str
    #: The numbers of the reference's cells, one per setting.
    cells: tuple[int, ...]


@dataclass(frozen=True)
class IfFloor:
    """A comparison that is repeated as if every diverged run had the floor as its score (see `floor_of`)."""

    #: The number of seed pairs that diverged runs add to the comparison.
    pairs: int
    effect: Effect
    interval: Bounds | None
    verdict: Verdict


@dataclass(frozen=True)
class Without:
    """The mean difference of a comparison, and its verdict, without one of the tasks."""

    task: str
    difference: float
    verdict: Verdict


@dataclass(frozen=True)
class AgainstReference:
    """A method compared with the reference over the settings of a block."""

    method: str
    family: str
    #: The settings on which both the method and the reference have runs.
    settings: tuple[TaskAndBackbone, ...]
    cells: tuple[int, ...]
    reference_cells: tuple[int, ...]
    effect: Effect
    #: The interval of the mean difference, simultaneous with those of all other methods of the block. None if
    #: its error is unknown.
    interval: Bounds | None
    #: Like `interval`, without the variance from tuning: the points chosen by tuning count as fixed.
    at_chosen_points: Bounds | None
    #: The weaker of two verdicts: that on `interval`, and that on the effect in `if_floor`, if there is one.
    verdict: Verdict
    #: The interval on each setting, simultaneous with those of all methods on all settings of the block.
    intervals: tuple[Bounds | None, ...]
    #: The number of planned seed pairs that have not finished.
    lost: int
    #: The comparison with diverged runs at the floor. None if diverged runs add no seed pair.
    if_floor: IfFloor | None
    #: The comparison without each task in turn. Empty if there is a single task.
    without: tuple[Without, ...]
    #: For each setting, the collapsed runs of the method and of the reference. If there are any, the two
    #: never count as practically equivalent.
    collapses: tuple[tuple[Collapses, ...], ...]
    #: The verdict on each of `intervals`.
    verdicts: tuple[Verdict, ...]

    @property
    def collapsed(self) -> tuple[Collapses, ...]:
        """The collapsed runs of the method and of the reference on all settings."""
        return tuple(chain.from_iterable(self.collapses))

    @property
    def sides(self) -> tuple[int, int, int]:
        """The numbers of settings won (interval above zero), tied and lost (interval below zero).

        A setting without an interval or without a verdict counts as tied.
        """
        sides = [verdict.side for verdict in self.verdicts]
        wins, losses = sides.count("better"), sides.count("worse")
        return wins, len(sides) - wins - losses, losses


# --- the reference ---


def find_reference(
    study: Study, budget: str, cells: Sequence[Cell], of_cells: Mapping[int, Recipe], named: str = ""
) -> tuple[Reference | None, list[str]]:
    """Finds the reference for a budget: LoRA with the same recipes on the same settings.

    Returns the reference and an empty list, or None and a note that says why there is no reference.

    A budget that has LoRA uses its own: plain LoRA (without options) if possible, otherwise a variant. Other
    budgets, and methods of fixed size, use the plain LoRA of the first budget that has it, or else a variant.
    A reference with studies may have failed in all trials, since failed trials have a score there.

    Args:
        cells: The cells of one method. On each of their settings, the reference must have a run with the same
            recipe.
        of_cells: The recipe of every cell, by the cell's number.
        named: The name of a method to use instead of LoRA.
    """
    recipe = {cell.setting: of_cells[cell.number] for cell in cells}
    lora = [cell for cell in study.all_cells if (cell.method == named if named else cell.family == REFERENCE)]
    plain = [cell for cell in lora if named or cell.method == cell.title]
    budgets = [budget, *dict.fromkeys(cell.budget for cell in study.all_cells)]
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
                return Reference(method, place, tuple(on[setting].number for setting in recipe)), []
            rejected = rejected or differs
        # A budget with its own LoRA uses no other.
        if of_budget and place == budget != OWN_SIZE and candidates is lora:
            break
    name = named or "LoRA"
    why = f"{name} ran with another recipe ({in_words(rejected)})" if rejected else ""
    why = why or f"No {name} among these methods has finished runs on all settings of this budget"
    return None, [f"{why}: nothing is compared with it."]


# --- comparisons ---


def against_reference(
    evidence: Evidence,
    cells: Mapping[str, tuple[int, ...]],
    reference: Reference | None,
    threshold: float,
    families: int = 1,
    collapses: Mapping[int, Collapses] = {},
    guards: Guards = NO_GUARDS,
) -> tuple[tuple[AgainstReference, ...], list[str]]:
    """Compares methods with the reference. Returns the comparisons, and notes on their limits.

    Args:
        cells: The numbers of each method's cells, one per setting on which the method is compared.
        reference: If it is None, nothing is compared, and there are no notes.
        families: The number of references in the report. Intervals are simultaneous over all of them.
        collapses: The collapsed runs, by the number of the cell.
        guards: What withholds verdicts.
    """
    if reference is None:
        return (), []
    notes: list[str] = []
    parts_of: dict[str, list[OnSetting]] = {}
    on = {evidence.study.all_cells[number].setting: number for number in reference.cells}
    rivals = {
        method: tuple(on[evidence.study.all_cells[number].setting] for number in of_method)
        for method, of_method in cells.items()
    }
    for method, of_method in cells.items():
        if of_method == rivals[method]:
            continue
        if parts := evidence.on_settings(of_method, rivals[method]):
            parts_of[method] = parts
        else:
            notes.append(
                f"{method} shares no finished seed with {reference.method} on some setting: differences are "
                "taken seed by seed, so there is no comparison."
            )
    level, claims = of_each(families), len(parts_of)
    on_settings = simultaneous(claims * len(reference.cells), level)
    family = _Family(evidence, collapses, guards, threshold, simultaneous(claims, level), on_settings)
    comparisons = tuple(
        family.compared(method, cells[method], rivals[method], effect(parts))
        for method, parts in parts_of.items()
    )
    return comparisons, notes + _limits(reference, comparisons)


def judged(
    measured: Effect, if_floor: Effect | None, level: float, threshold: float, *, collapsed: bool
) -> Verdict:
    """The weaker of two verdicts: that on the effect `measured`, and that on the effect `if_floor`.

    `if_floor` is the effect with diverged runs at the floor. If it is None, only `measured` counts. `level`
    is the confidence level of the intervals. `collapsed` says whether some compared run collapsed
    """
    verdicts = [
        verdict(version.interval(level), threshold, collapsed=collapsed)
        for version in (measured, if_floor)
        if version is not None
    ]
    return reduce(weaker, verdicts)


@dataclass(frozen=True)
class _Family:
    """Makes the comparisons of one block, with their common threshold and levels."""

    evidence: Evidence
    collapses: Mapping[int, Collapses]
    guards: Guards
    threshold: float
    #: The confidence level of each method's interval, so high that the intervals of all methods hold
    #: simultaneously.
    level: float
    #: The same for the intervals on single settings, which hold simultaneously for all methods and settings.
    level_on_settings: float

    def compared(
        self, method: str, cells: tuple[int, ...], reference_cells: tuple[int, ...], measured: Effect
    ) -> AgainstReference:
        study, pairs = self.evidence.study, list(zip(cells, reference_cells, strict=True))
        settings = tuple(study.all_cells[cell].setting for cell in cells)
        floor = self._if_floor(pairs, measured, settings)
        intervals = tuple(effect([part]).interval(self.level_on_settings) for part in measured.parts)
        collapses = tuple(
            tuple(self.collapses[cell] for cell in pair if cell in self.collapses) for pair in pairs
        )
        return AgainstReference(
            method=method,
            family=study.all_cells[cells[0]].family,
            settings=settings,
            cells=cells,
            reference_cells=reference_cells,
            effect=measured,
            interval=measured.interval(self.level),
            at_chosen_points=measured.at_chosen_points(self.level),
            verdict=self._judged(measured, floor, collapses, settings),
            intervals=intervals,
            lost=sum(_planned_pairs(study, *pair) for pair in pairs) - measured.pairs,
            if_floor=floor,
            without=tuple(self._without(settings, measured, floor, collapses)),
            collapses=collapses,
            verdicts=tuple(
                self.guards.left(verdict(interval, self.threshold), [setting])
                for interval, setting in zip(intervals, settings, strict=True)
            ),
        )

    def _judged(
        self,
        measured: Effect,
        floor: IfFloor | None,
        collapses: Sequence[Sequence[Collapses]],
        settings: Sequence[TaskAndBackbone],
    ) -> Verdict:
        if_floor = floor.effect if floor else None
        said = judged(measured, if_floor, self.level, self.threshold, collapsed=any(collapses))
        return self.guards.left(said, settings)

    def _without(
        self,
        settings: Sequence[TaskAndBackbone],
        measured: Effect,
        floor: IfFloor | None,
        collapses: Sequence[Sequence[Collapses]],
    ) -> Iterator[Without]:
        tasks = [setting.task for setting in settings]
        for task in dict.fromkeys(tasks) if len({*tasks}) > 1 else ():
            places = [place for place, name in enumerate(tasks) if name != task]
            rest = measured.on(places)
            rest_floor = replace(floor, effect=floor.effect.on(places)) if floor else None
            said = self._judged(
                rest, rest_floor, [collapses[p] for p in places], [settings[p] for p in places]
            )
            yield Without(task, rest.difference, said)

    def _if_floor(
        self, pairs: Sequence[tuple[int, int]], measured: Effect, settings: Sequence[TaskAndBackbone]
    ) -> IfFloor | None:
        parts, added = [], 0
        for part, pair in zip(measured.parts, pairs, strict=True):
            own, other = (_floored(self.evidence.study, cell) for cell in pair)
            shared = [seed for seed in own if seed in other]
            if len(shared) > part.pairs:
                filled = of_seeds(np.array([own[seed] - other[seed] for seed in shared]))
                added += len(shared) - part.pairs
                part = replace(part, pairs=filled.pairs, difference=filled.difference, seeds=filled.seeds)
            parts.append(part)
        if not added:
            return None
        floored = effect(parts)
        interval = floored.interval(self.level)
        said = self.guards.left(verdict(interval, self.threshold, collapsed=True), settings)
        return IfFloor(added, floored, interval, said)


def _floored(study: Study, cell: int) -> dict[int, float]:
    """The scores of a cell by seed. Larger is better. Diverged runs have the score of `floor_of`."""
    seeds, sign = study.of_cell(cell), study.direction(cell)
    scores = {seed.seed: sign * seed.score for seed in seeds if seed.score is not None}
    if diverged := [seed.seed for seed in seeds if seed.failure == DIVERGED]:
        scores |= dict.fromkeys(diverged, floor_of(study, study.all_cells[cell].setting))
    return scores


def _planned_pairs(study: Study, *cells: int) -> int:
    """The number of seeds that every one of these cells plans."""
    return len(set.intersection(*({seed.seed for seed in study.of_cell(cell)} for cell in cells)))


def floor_of(study: Study, setting: TaskAndBackbone) -> float:
    """The score with which diverged runs on a setting are counted. Larger is better.

    It is the mean score of the head alone or, if the head alone has not run, the worst score of any run.
    """
    cells = [cell for cell in study.all_cells if cell.setting == setting and cell.mean is not None]
    heads = [cell.gain for cell in cells if cell.family == FLOOR and cell.gain is not None]
    return heads[0] if heads else min(float(study.gains([cell.number])[1].min()) for cell in cells)


def _limits(reference: Reference, comparisons: Sequence[AgainstReference]) -> list[str]:
    """Notes on comparisons without a verdict, and on comparisons that lost seed pairs."""
    notes = []
    silent = [comparison for comparison in comparisons if comparison.verdict.answer is Answer.NONE]
    if few := sum(comparison.effect.error is None for comparison in silent):
        notes.append(
            f"{many(few, 'method')} of {len(comparisons)} share fewer than {LEAST_SEEDS} seeds with "
            f"{reference.method} on some setting: too few to estimate the noise, so there is no verdict."
        )
    if len(silent) > few:
        notes.append(
            f"All seed pairs of {many(len(silent) - few, 'method')} differ from {reference.method} "
            "by the same amount on each setting: the noise is unknown, so there is no verdict."
        )
    if lost := sum(comparison.lost > 0 for comparison in comparisons):
        notes.append(
            f"Seed pairs were lost of {many(lost, 'method')} (†): their intervals are of the remaining "
            "pairs, and wider. Runs that are lost because a method trains badly flatter it: compare "
            "the verdict with diverged runs at the floor."
        )
    return notes


# --- further statistics ---


@dataclass(frozen=True)
class Entrants:
    """The methods of a block with their comparisons, from which each statistic is computed."""

    evidence: Evidence
    #: The numbers of each method's cells, one per setting.
    cells: Mapping[str, tuple[int, ...]]
    comparisons: tuple[AgainstReference, ...]
    #: The number of comparisons with simultaneous intervals, and the intervals' joint confidence level.
    claims: int
    level: float
    threshold: float


Result = TypeVar("Result")


@dataclass(frozen=True)
class Statistic(Generic[Result]):
    """A statistic of the methods of a block, which reports export as a table.

    To add one, write a module with a `Statistic` and name it in `tensorbench.reports.analysis.STATISTICS`.
    """

    #: The name of the statistic's CSV file, and of its table in `report.json`.
    name: str
    #: Computes the result. Returns None if too little is known.
    compute: Callable[[Entrants], Result | None]
    #: Yields the lines of the table, each as a dictionary from columns to values.
    lines: Callable[[Entrants, Result], Iterator[dict[str, Any]]]


def _design(entrants: Entrants) -> Design | None:
    effects = [comparison.effect for comparison in entrants.comparisons]
    return power.of_effects(effects, entrants.claims, entrants.level)


def _design_lines(entrants: Entrants, design: Design) -> Iterator[dict[str, Any]]:
    yield {
        "settings": design.settings,
        "seeds": design.seeds,
        "comparisons": design.claims,
        **level_column(entrants.level),
        "threshold": entrants.threshold,
        "finds": design.finds,
        "margin": design.margin,
        "seeds_for_threshold": design.needs(entrants.threshold),
    }


#: The statistic that says which differences the comparisons of a block can detect.
POWER = Statistic("power", _design, _design_lines)


def level_column(level: float) -> dict[str, float]:
    """A column with the joint confidence level of a block's intervals. No column if the level is 95%."""
    return {} if math.isclose(level, of_each(1)) else {"level": level}
