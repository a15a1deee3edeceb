"""Every method of a budget against the reference, which is LoRA unless another one is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain

import numpy as np

from reports.collapses import DIVERGED, Collapses
from reports.evidence import Evidence
from reports.inference.crossed import OnSetting, of_seeds
from reports.inference.effects import Answer, Effect, Verdict, effect, verdict, weaker
from reports.inference.intervals import LEAST_SEEDS, Bounds, of_each, simultaneous
from reports.recipes import Recipe, difference, in_words
from reports.study import FLOOR, OWN_SIZE, REFERENCE, Cell, Study, TaskAndBackbone, grouped
from reports.words import many


@dataclass(frozen=True)
class Reference:
    """What the methods of a budget are compared with."""

    method: str
    #: Where it stands; another budget's where this one has none.
    budget: str
    #: Its cells, in the order of the settings.
    cells: tuple[int, ...]


@dataclass(frozen=True)
class IfFloor:
    """What would follow if the runs that diverged had the score of their setting's floor."""

    #: Pairs that count then and else do not.
    pairs: int
    effect: Effect
    interval: Bounds | None
    verdict: Verdict


@dataclass(frozen=True)
class Without:
    """What would be said without one task."""

    task: str
    difference: float
    verdict: Verdict


@dataclass(frozen=True)
class AgainstReference:
    """A method against the reference, over the settings of a budget."""

    method: str
    family: str
    #: Those on which it is compared.
    settings: tuple[TaskAndBackbone, ...]
    cells: tuple[int, ...]
    reference_cells: tuple[int, ...]
    effect: Effect
    #: Of the difference, simultaneous with those of all other methods of the budget.
    interval: Bounds | None
    #: The same if the points that tuning chose had been fixed beforehand.
    at_chosen_points: Bounds | None
    #: What the interval says, and no more than it would say if diverged runs had the score of the floor.
    verdict: Verdict
    #: On each setting, simultaneous with those of all methods on all settings of the budget.
    intervals: tuple[Bounds | None, ...]
    #: Seed pairs that were planned and have not finished.
    lost: int
    #: None where no run of the pairs has diverged.
    if_floor: IfFloor | None
    #: Without each task in turn; empty of one.
    without: tuple[Without, ...]
    #: On each setting the sides of which runs collapsed. Nothing is within the threshold there.
    collapses: tuple[tuple[Collapses, ...], ...]

    @property
    def collapsed(self) -> tuple[Collapses, ...]:
        """Those of all settings."""
        return tuple(chain.from_iterable(self.collapses))

    @property
    def sides(self) -> tuple[int, int, int]:
        """Settings won, tied and lost: their interval is above zero, contains it, or is below."""
        known = [interval for interval in self.intervals if interval is not None]
        wins, losses = sum(low > 0 for low, _ in known), sum(high < 0 for _, high in known)
        return wins, len(self.intervals) - wins - losses, losses


def find_reference(
    study: Study, budget: str, cells: Sequence[Cell], made: Mapping[int, Recipe], named: str = ""
) -> tuple[Reference | None, list[str]]:
    """LoRA on the settings of these cells and made as they are: the budget's own or else that of the first
    budget that has it; or why there is none.

    Variants of LoRA count only where no plain one is to be had: at this budget, or, where it has no LoRA at
    all and for methods of their own size, at any. The same of the method `named`, where one is asked for in
    place of LoRA.
    """
    recipe = {cell.setting: made[cell.number] for cell in cells}
    lora = [cell for cell in study.all_cells if (cell.method == named if named else cell.family == REFERENCE)]
    plain = [cell for cell in lora if named or cell.method == cell.title]
    budgets = [budget, *dict.fromkeys(cell.budget for cell in study.all_cells)]
    own = [(budget, plain), (budget, lora)] if budget != OWN_SIZE else []
    order = own + [(there, some) for some in (plain, lora) for there in budgets]
    other: dict[str, tuple[str, str]] = {}
    for there, some in order:
        of_budget = [cell for cell in some if cell.budget == there]
        for method, of_method in grouped(of_budget, lambda cell: cell.method).items():
            found = {cell.setting: cell for cell in of_method if cell.finished}
            if not all(setting in found for setting in recipe):
                continue
            differs: dict[str, tuple[str, str]] = {}
            for setting, here in recipe.items():
                differs |= difference(made[found[setting].number], here)
            if not differs:
                return Reference(method, there, tuple(found[setting].number for setting in recipe)), []
            other = other or differs
        # A budget that has a LoRA of its own is measured by no other.
        if of_budget and there == budget != OWN_SIZE and some is lora:
            break
    asked = named or "LoRA"
    why = f"{asked} was made otherwise ({in_words(other)})" if other else ""
    why = why or f"No {asked} has finished runs on all settings of this budget"
    return None, [f"{why}: nothing is compared with it."]


def against_reference(
    evidence: Evidence,
    cells: Mapping[str, tuple[int, ...]],
    reference: Reference | None,
    threshold: float,
    families: int = 1,
    collapses: Mapping[int, Collapses] = {},
) -> tuple[tuple[AgainstReference, ...], list[str]]:
    """The comparisons of these methods, and what is to be said of them.

    `cells`: those of each method, one for each setting that it has; where it lacks some, it is compared with
    the reference on the others. `families`: with how many references methods are compared, all of it at once.
    `collapses`: by cell.
    """
    if reference is None:
        return (), []
    notes: list[str] = []
    found: dict[str, list[OnSetting]] = {}
    on = {evidence.study.all_cells[number].setting: number for number in reference.cells}
    others = {
        method: tuple(on[evidence.study.all_cells[number].setting] for number in of_method)
        for method, of_method in cells.items()
    }
    for method, of_method in cells.items():
        if of_method == others[method]:
            continue
        parts = [evidence.on_setting(pair) for pair in zip(of_method, others[method], strict=True)]
        known = [part for part in parts if part is not None]
        if len(known) == len(parts):
            found[method] = known
        else:
            notes.append(
                f"{method} shares no finished seed with {reference.method} on some setting: differences are "
                "taken seed by seed, so nothing is said of it."
            )
    at_once = of_each(families)
    claims, settings = len(found), len(reference.cells)
    family = _Family(
        evidence,
        collapses,
        threshold,
        simultaneous(claims, at_once),
        simultaneous(claims * settings, at_once),
    )
    made = tuple(
        family.compared(method, cells[method], others[method], effect(parts))
        for method, parts in found.items()
    )
    return made, notes + _told(reference, made)


def judged(
    measured: Effect, if_floor: Effect | None, level: float, threshold: float, *, collapsed: bool
) -> Verdict:
    """The verdict on an effect, and no more than if diverged runs had the score of the floor."""
    verdicts = [
        verdict(version.interval(level), threshold, collapsed=collapsed)
        for version in (measured, if_floor)
        if version is not None
    ]
    return reduce(weaker, verdicts)


@dataclass(frozen=True)
class _Family:
    """What the comparisons of one budget have in common."""

    evidence: Evidence
    collapses: Mapping[int, Collapses]
    threshold: float
    #: Of the interval of each method, so that all hold at once.
    level: float
    #: The same of each method on each setting.
    level_on_settings: float

    def compared(
        self, method: str, cells: tuple[int, ...], others: tuple[int, ...], found: Effect
    ) -> AgainstReference:
        study, floor = self.evidence.study, self._if_floor(cells, others, found)
        collapses = tuple(
            tuple(self.collapses[cell] for cell in pair if cell in self.collapses)
            for pair in zip(cells, others, strict=True)
        )
        planned = sum(len(_planned(study, pair)) for pair in zip(cells, others, strict=True))
        return AgainstReference(
            method=method,
            family=study.all_cells[cells[0]].family,
            settings=tuple(study.all_cells[cell].setting for cell in cells),
            cells=cells,
            reference_cells=others,
            effect=found,
            interval=found.interval(self.level),
            at_chosen_points=found.at_chosen_points(self.level),
            verdict=judged(
                found, floor.effect if floor else None, self.level, self.threshold, collapsed=any(collapses)
            ),
            intervals=tuple(effect([part]).interval(self.level_on_settings) for part in found.parts),
            lost=planned - found.pairs,
            if_floor=floor,
            without=tuple(self._without(cells, found, floor, collapses)),
            collapses=collapses,
        )

    def _without(
        self,
        cells: Sequence[int],
        found: Effect,
        floor: IfFloor | None,
        collapses: Sequence[Sequence[Collapses]],
    ) -> Iterator[Without]:
        tasks = [self.evidence.study.all_cells[cell].task for cell in cells]
        for task in dict.fromkeys(tasks) if len({*tasks}) > 1 else ():
            places = [place for place, of in enumerate(tasks) if of != task]
            rest = found.on(places)
            said = judged(
                rest,
                floor.effect.on(places) if floor else None,
                self.level,
                self.threshold,
                collapsed=any(collapses[place] for place in places),
            )
            yield Without(task, rest.difference, said)

    def _if_floor(self, cells: Sequence[int], others: Sequence[int], found: Effect) -> IfFloor | None:
        parts, more = [], 0
        for part, *pair in zip(found.parts, cells, others, strict=True):
            own, other = (_floored(self.evidence.study, cell) for cell in pair)
            both = [seed for seed in own if seed in other]
            if len(both) > part.pairs:
                filled = of_seeds(np.array([own[seed] - other[seed] for seed in both]))
                more += len(both) - part.pairs
                part = replace(part, pairs=filled.pairs, difference=filled.difference, seeds=filled.seeds)
            parts.append(part)
        if not more:
            return None
        whole = effect(parts)
        interval = whole.interval(self.level)
        return IfFloor(more, whole, interval, verdict(interval, self.threshold, collapsed=True))


def _floored(study: Study, cell: int) -> dict[int, float]:
    """The scores of a cell by seed, more being better, with the floor for runs that diverged."""
    seeds, sign = study.of_cell(cell), study.direction(cell)
    scores = {seed.seed: sign * seed.score for seed in seeds if seed.score is not None}
    if lost := [seed.seed for seed in seeds if seed.failure == DIVERGED]:
        scores |= dict.fromkeys(lost, floor_of(study, study.all_cells[cell].setting))
    return scores


def _planned(study: Study, pair: Sequence[int]) -> list[int]:
    """The seeds that both cells plan."""
    own, other = ({seed.seed for seed in study.of_cell(cell)} for cell in pair)
    return sorted(own & other)


def floor_of(study: Study, setting: TaskAndBackbone) -> float:
    """The score of the trained head alone, or else the worst of any run of the setting; more is better."""
    cells = [cell for cell in study.all_cells if cell.setting == setting and cell.mean is not None]
    heads = [cell.gain for cell in cells if cell.family == FLOOR and cell.gain is not None]
    return heads[0] if heads else min(float(study.gains([cell.number])[1].min()) for cell in cells)


def _told(reference: Reference, made: Sequence[AgainstReference]) -> list[str]:
    """What the comparisons cannot say."""
    notes = []
    silent = [one for one in made if one.verdict.answer is Answer.NONE]
    if few := sum(one.effect.error is None for one in silent):
        notes.append(
            f"{many(few, 'method')} of {len(made)} share fewer than {LEAST_SEEDS} seeds with "
            f"{reference.method} on some setting: too little is known of the noise, and there is no verdict."
        )
    if len(silent) > few:
        notes.append(
            f"All seed pairs of {many(len(silent) - few, 'method')} differ from {reference.method} "
            "by the same on each setting: that tells nothing of the noise, and there is no verdict."
        )
    if lost := [one for one in made if one.lost]:
        notes.append(
            f"Seed pairs were lost of {many(len(lost), 'method')} (†): their intervals are of the pairs "
            "that are left, and wider for it. Runs that are lost because a method trains badly flatter it: "
            "see what follows if a diverged run scores the floor."
        )
    return notes
