"""Every method of a budget against the reference, which is LoRA unless another one is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reports.evidence import Evidence
from reports.inference import chances, flips
from reports.inference.beyond import Beyond, beyond
from reports.inference.chances import Criterion
from reports.inference.crossed import OnSetting, of_seeds
from reports.inference.effects import Answer, Effect, Verdict, effect, hedges, verdict
from reports.inference.intervals import ALPHA, Array, Bounds, of_each, simultaneous
from reports.recipes import Recipe, difference, told
from reports.study import FLOOR, OWN_SIZE, REFERENCE, Cell, Study, TaskAndBackbone, grouped
from reports.words import many

#: How a run fails whose training went wrong, and not the machine.
DIVERGED = "diverged"


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
    difference: float
    interval: Bounds | None
    verdict: Verdict


@dataclass(frozen=True)
class AgainstReference:
    """A method against the reference, over the settings of a budget."""

    method: str
    family: str
    cells: tuple[int, ...]
    reference_cells: tuple[int, ...]
    effect: Effect
    #: Of the difference. It holds at once with those of all other methods of the budget, and the verdict is
    #: what it says.
    interval: Bounds | None
    verdict: Verdict
    #: Hedges' g of the paired differences.
    g: float | None
    #: Chance that a run of the method scores above one of the reference, with its interval.
    better: float
    better_interval: Bounds | None
    #: By sign flips within settings: for the method alone, and for all methods of the budget.
    p: float
    p_adjusted: float
    smallest_p: float
    #: Seed pairs that were planned and are not there.
    lost: int
    #: None where no run of the pairs has diverged.
    if_floor: IfFloor | None
    beyond: Beyond

    @property
    def criterion(self) -> Criterion | None:
        """What Bouthillier et al. (2021) would say."""
        return self.better_interval and chances.criterion(self.better_interval)


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
    why = f"{asked} was made otherwise ({told(other)})" if other else ""
    why = why or f"No {asked} has finished runs on all settings of this budget"
    return None, [f"{why}: nothing is compared with it."]


def against_reference(
    evidence: Evidence,
    cells: Mapping[str, tuple[int, ...]],
    reference: Reference | None,
    threshold: float,
    families: int = 1,
) -> tuple[tuple[AgainstReference, ...], list[str]]:
    """The comparisons of these methods, and what is to be said of them.

    `cells`: those of each method, one a setting. `families`: with how many references methods are compared,
    all of it at once.
    """
    if reference is None:
        return (), []
    notes: list[str] = []
    found: dict[str, list[OnSetting]] = {}
    for method, of_method in cells.items():
        if of_method == reference.cells:
            continue
        parts = [evidence.on_setting(pair) for pair in zip(of_method, reference.cells, strict=True)]
        known = [part for part in parts if part is not None]
        if len(known) == len(parts):
            found[method] = known
        else:
            notes.append(
                f"{method} shares no finished seed with {reference.method} on some setting: differences are "
                "taken seed by seed, so nothing is said of it."
            )
    family = _Family(evidence, reference, threshold, simultaneous(len(found), of_each(families)))
    tables = [family.differences(cells[method]) for method in found]
    alone, adjusted, joint = flips.adjusted(tables, [family.seeds(cells[method]) for method in found])
    made = tuple(
        family.compared(method, cells[method], effect(parts), (p, min(1.0, families * of_all)))
        for (method, parts), p, of_all in zip(found.items(), alone, adjusted, strict=True)
    )
    return made, notes + _told(reference, made, joint, families)


@dataclass(frozen=True)
class _Family:
    """What the comparisons of one budget have in common."""

    evidence: Evidence
    reference: Reference
    threshold: float
    #: Of the interval of each, so that all hold at once.
    level: float

    def differences(self, cells: Sequence[int]) -> list[Array]:
        """The paired differences (pairs,) on each setting, over the size of scores: neither flips nor g
        depend on it.
        """
        study = self.evidence.study
        pairs = zip(cells, self.reference.cells, strict=True)
        return [np.subtract(*study.gains(pair)[1]) / study.size(pair[0]) for pair in pairs]

    def seeds(self, cells: Sequence[int]) -> list[list[int]]:
        """The seeds of these pairs."""
        pairs = zip(cells, self.reference.cells, strict=True)
        return [self.evidence.study.gains(pair)[0] for pair in pairs]

    def compared(
        self, method: str, cells: tuple[int, ...], found: Effect, p: tuple[float, float]
    ) -> AgainstReference:
        """`p`: of the method alone, and adjusted for all."""
        study, others = self.evidence.study, self.reference.cells
        interval = found.interval(self.level)
        better, better_interval = chances.p_improvement(
            *([study.gains([cell])[1][0] for cell in side] for side in (cells, others))
        )
        by_task = grouped(zip(cells, found.parts, strict=True), lambda entry: study.all_cells[entry[0]].task)
        parts = {task: [part for _, part in some] for task, some in by_task.items()}
        planned = sum(len(_planned(study, pair)) for pair in zip(cells, others, strict=True))
        return AgainstReference(
            method=method,
            family=study.all_cells[cells[0]].family,
            cells=cells,
            reference_cells=others,
            effect=found,
            interval=interval,
            verdict=verdict(interval, self.threshold),
            g=hedges(self.differences(cells)),
            better=better,
            better_interval=better_interval,
            p=p[0],
            p_adjusted=p[1],
            smallest_p=flips.smallest_p(found.pairs),
            lost=planned - found.pairs,
            if_floor=self._if_floor(cells, found),
            beyond=beyond(parts, self.threshold, self.level),
        )

    def _if_floor(self, cells: Sequence[int], found: Effect) -> IfFloor | None:
        parts, more = [], 0
        for part, *pair in zip(found.parts, cells, self.reference.cells, strict=True):
            own, other = (_floored(self.evidence.study, cell) for cell in pair)
            both = [seed for seed in own if seed in other]
            if len(both) > part.pairs:
                filled = of_seeds(np.array([own[seed] - other[seed] for seed in both]))
                more += len(both) - part.pairs
                part = replace(filled, examples=part.examples, count=part.count, size=part.size)
            parts.append(part)
        if not more:
            return None
        whole = effect(parts)
        interval = whole.interval(self.level)
        return IfFloor(more, whole.difference, interval, verdict(interval, self.threshold))


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


def _told(reference: Reference, made: Sequence[AgainstReference], joint: bool, families: int) -> list[str]:
    """What the comparisons cannot say, and how p was adjusted."""
    notes = []
    silent = [one for one in made if one.verdict.answer is Answer.NONE]
    if single := [one.method for one in silent if one.effect.error is None]:
        notes.append(
            f"{many(len(single), 'method')} of {len(made)} share a single seed with {reference.method} on "
            "some setting: nothing is known of the noise, and there is no verdict."
        )
    if len(silent) > len(single):
        notes.append(
            f"All seed pairs of {many(len(silent) - len(single), 'method')} differ from {reference.method} "
            "by the same on each setting: that tells nothing of the noise, and there is no verdict."
        )
    if lost := [one for one in made if one.lost]:
        notes.append(
            f"Seed pairs were lost of {many(len(lost), 'method')} (†): their intervals are of the pairs "
            "that are left, and wider for it. Runs that are lost because a method trains badly flatter it: "
            "see what follows if a diverged run scores the floor."
        )
    if made and not joint and len(made) > 1:
        notes.append(
            "Sign flips are adjusted by Holm's procedure: the methods do not have the same few pairs."
        )
    if made and all(one.smallest_p * len(made) * families > ALPHA for one in made):
        notes.append(
            "So few seed pairs can hardly give a p below .05, whatever the scores: the check by sign flips "
            "is empty."
        )
    return notes
