"""Every method of a budget against the reference, which is LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reports import statistics
from reports.statistics import ALPHA, Bounds, Effect
from reports.study import OWN_SIZE, REFERENCE, Study, TaskAndBackbone, grouped
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
class AgainstReference:
    """A method against the reference, over the settings of a budget."""

    method: str
    family: str
    cells: tuple[int, ...]
    reference_cells: tuple[int, ...]
    effect: Effect
    #: Chance that a run of the method scores above one of the reference, with its interval.
    better: float
    better_interval: Bounds | None
    #: Corrected for the methods of the budget, by Holm's procedure.
    p_holm: float
    verdict: str


def find_reference(
    study: Study, budget: str, settings: Sequence[TaskAndBackbone]
) -> tuple[Reference | None, list[str]]:
    """LoRA on these settings, the budget's own or else that of the first budget that has it; or why there is
    none.

    Variants of LoRA count only where no plain one is to be had: at this budget, or for methods of their own
    size at any.
    """
    lora = [cell for cell in study.all_cells if cell.family == REFERENCE]
    plain = [cell for cell in lora if cell.method == cell.title]
    budgets = [budget, *dict.fromkeys(cell.budget for cell in study.all_cells)]
    own_size = budget == OWN_SIZE
    order = [(there, some) for some in (plain, lora) for there in budgets]
    if not own_size:
        order = [(there, some) for there in budgets for some in (plain, lora)]
    for there, some in order:
        of_budget = [cell for cell in some if cell.budget == there]
        for method, cells in grouped(of_budget, lambda cell: cell.method).items():
            complete = {cell.setting: cell.number for cell in cells if cell.complete}
            if all(setting in complete for setting in settings):
                return Reference(method, there, tuple(complete[setting] for setting in settings)), []
        if of_budget and there == budget and not own_size and some is lora:
            return None, ["LoRA is incomplete at this budget: nothing is compared with it."]
    return None, ["No complete LoRA on the settings of this budget: nothing is compared with it."]


def against_reference(
    study: Study, cells: Mapping[str, tuple[int, ...]], reference: Reference | None, threshold: float
) -> tuple[tuple[AgainstReference, ...], list[str]]:
    """The comparisons of these methods, and what is to be said of them.

    `cells`: those of each method, one a setting.
    """
    if reference is None:
        return (), []
    notes, tables = [], {}
    for method, of_method in cells.items():
        if of_method == reference.cells:
            continue
        found = [study.scores(pair)[1] for pair in zip(of_method, reference.cells, strict=True)]
        if min(table.shape[1] for table in found) == 0:
            notes.append(f"{method} shares no seed with the reference on some setting.")
        else:
            tables[method] = found
    effects = statistics.effects([[own - other for own, other in found] for found in tables.values()])
    corrected = statistics.holm([effect.p for effect in effects])
    compared = []
    for (method, found), effect, p in zip(tables.items(), effects, corrected, strict=True):
        better, interval = statistics.p_improvement([own for own, _ in found], [other for _, other in found])
        compared.append(
            AgainstReference(
                method=method,
                family=study.all_cells[cells[method][0]].family,
                cells=cells[method],
                reference_cells=reference.cells,
                effect=effect,
                better=better,
                better_interval=interval,
                p_holm=p,
                verdict=verdict(effect, p, len(tables), threshold),
            )
        )
    return tuple(compared), notes + _too_little(reference, effects)


def _too_little(reference: Reference, effects: Sequence[Effect]) -> list[str]:
    methods = len(effects)
    if not effects or any(effect.smallest_p * methods <= ALPHA for effect in effects):
        return []
    pairs = max(effect.pairs for effect in effects)
    least = min(1.0, min(effect.smallest_p for effect in effects) * methods)
    return [
        f"Too little data for a claim against {reference.method}: {many(pairs, 'seed pair')} and "
        f"{many(methods, 'method')} allow no corrected p below {least:.2g}."
    ]


def verdict(effect: Effect, p: float, methods: int, threshold: float) -> str:
    """What may be said of a method against the reference, in a few words."""
    interval = effect.interval_of(methods)
    if effect.smallest_p * methods > ALPHA or interval is None:
        return "too little data"
    if p < ALPHA:
        word = "better" if effect.difference > 0 else "worse"
        return word if abs(effect.difference) >= threshold else f"{word}, by less than matters"
    low, high = interval
    if -threshold < low and high < threshold:
        return "practically equal"
    return "not separable"
