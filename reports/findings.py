"""The page's first screen: for each block the best method, its comparison, and a claim as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np

from tensorbench.reports import headline
from tensorbench.reports.analysis import Analysis, Block
from tensorbench.reports.collapses import Collapses
from tensorbench.reports.comparisons import AgainstReference, Without, judged
from tensorbench.reports.inference import power
from tensorbench.reports.inference.effects import Answer, Effect, Verdict
from tensorbench.reports.inference.intervals import RESOLUTION, Bounds, simultaneous
from tensorbench.reports.inference.orders import best_of_equals
from tensorbench.reports.study import Cell, Item, Study, TaskAndBackbone
from tensorbench.reports.units import minus
from tensorbench.reports.words import many


@dataclass(frozen=True)
class Against:
    """The difference of a method from the reference, over all settings of a block or on one setting."""

    effect: Effect
    #: The interval, simultaneous with those of all other methods of the block. On one setting, it is
    #: simultaneous with the intervals of all methods on all settings.
    interval: Bounds | None
    verdict: Verdict
    #: Whether planned seed pairs have not finished.
    lost: bool
    reference: str

    @property
    def certain(self) -> bool:
        """Whether the interval excludes zero and a verdict is given."""
        low, high = self.interval or (0.0, 0.0)
        return (low > 0 or high < 0) and not self.verdict.reason


def against(block: Block, comparison: AgainstReference, place: int | None = None, beside: int = 0) -> Against:
    """The difference over all settings of a comparison, or on the setting at index `place`.

    The interval over all settings is simultaneous with those of the block's other methods, and with the
    intervals of further comparisons, whose number is `beside`. The interval on one setting is simultaneous
    with those of all methods on all settings.
    """
    assert block.reference is not None
    shown, floor = comparison.effect, comparison.if_floor.effect if comparison.if_floor else None
    claims, settings = block.claims + beside, comparison.settings
    if place is not None:
        shown, floor = shown.on([place]), floor.on([place]) if floor else None
        claims, settings = block.claims * len(block.settings), settings[place : place + 1]
    level, collapsed = simultaneous(claims, block.level), bool(collapsed_on(comparison, place))
    said = judged(shown, floor, level, block.threshold, collapsed=collapsed)
    said = block.guards.left(said, settings)
    return Against(shown, shown.interval(level), said, comparison.lost > 0, block.reference.method)


def collapsed_on(comparison: AgainstReference, place: int | None) -> Sequence[Collapses]:
    """The collapsed runs of the method and of the reference in a comparison.

    If `place` is None, runs on all settings count, otherwise only those on the setting at this index.
    """
    return comparison.collapsed if place is None else comparison.collapses[place]


@dataclass(frozen=True)
class Costs:
    """The smallest and largest costs of a method over some settings."""

    parameters: tuple[float, float]
    #: Memory in MiB. None if unknown on some setting.
    peak_mib: tuple[float, float] | None

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> Costs:
        peaks = [peak for cell in cells if (peak := cell["peak_mib"]) is not None]
        parameters = [cell.parameters for cell in cells]
        return cls(
            (min(parameters), max(parameters)),
            (min(peaks), max(peaks)) if len(peaks) == len(cells) else None,
        )


@dataclass(frozen=True)
class Claim:
    """A statement about one block, over all its settings or on one of them, with the numbers behind it."""

    block: Block
    #: The setting. None if the statement is about all settings of the block.
    setting: TaskAndBackbone | None
    #: The method with the best mean score. None if there is no such method, for example because all methods
    #: have the same mean.
    best: str | None
    #: The methods that are statistically indistinguishable from the best. None if unknown.
    equals: tuple[str, ...] | None
    #: The best method's difference from the reference. None if it is the reference, or cannot be compared.
    against: Against | None
    #: The costs of the best method. None if there is no best method.
    costs: Costs | None
    #: The smallest true difference from the reference that would be detected with 80% power. None if unknown.
    finds: float | None
    #: The statement, or the reason why nothing can be claimed.
    claim: str

    def __str__(self) -> str:
        where = self.block.heading + (f" on {self.setting}" if self.setting else "")
        reference = self.block.reference.method if self.block.reference else None
        best = f"{self.best} has the best mean. " if self.best not in (None, reference) else ""
        return f"{where}: {best}{self.claim}"


def findings(study: Study, blocks: Iterable[Block]) -> Iterator[Claim]:
    """Yields a claim for each block. If the block has several settings, a claim for each of them follows.

    Claims for each setting are left out if no method has runs on all settings of the block.
    """
    for block in blocks:
        if len(block.settings) == 1:
            yield _finding(study, block, 0)
            continue
        yield _finding(study, block, None)
        if block.cells:
            yield from (_finding(study, block, place) for place in range(len(block.settings)))


def sentences(analysis: Analysis) -> list[str]:
    """The sentences with which a report opens, then the claims of all blocks."""
    answer = headline.answer(analysis.blocks)
    # The answer opens with the first guards.
    others = [sentence for sentence in headline.faults(analysis) if sentence not in answer]
    return [*filter(None, [answer]), *others, *map(str, findings(analysis.study, analysis.blocks))]


def _finding(study: Study, block: Block, place: int | None) -> Claim:
    setting = None if place is None else block.settings[place]
    best, equals = _best(study, block, place)
    comparison = next((each for each in block.comparisons if each.method == best), None)
    cells = _at(block.cells[best], place) if best else ()
    by_chance, detectable = chance(study, block, place), _detectable(block, place)
    if better := _better_part(study, block, place):
        comparison, place = better
        best, equals, cells = comparison.method, None, _at(comparison.cells, place)
    difference = against(block, comparison, place) if comparison else None
    lost = block.guards.left(Verdict(Answer.NONE), block.settings if setting is None else [setting]).reason
    claims = [_claim(block, best, equals, difference, lost)]
    if better:
        claims.append(f"{best} ran {on_part(block, better[0])}.")
    if comparison:
        own = [side for side in collapsed_on(comparison, place) if side.method == best]
        claims += [by_chance, *map(str, own)]
        claims.append(_driven(block, comparison) if setting is None else "")
    return Claim(
        block=block,
        setting=setting,
        best=best,
        equals=equals,
        against=difference,
        costs=Costs.of([study.all_cells[number] for number in cells]) if best else None,
        finds=detectable,
        claim=" ".join(filter(None, claims)),
    )


def _better_part(study: Study, block: Block, place: int | None) -> tuple[AgainstReference, int] | None:
    """Finds the best method on one setting, if this method did not run on all settings.

    `place` is the setting's index in the block. Returns the comparison of that method, and the setting's
    index in the comparison. None if a method that ran on all settings has as good a mean on this setting, or
    if `place` is None.
    """
    if place is None:
        return None
    means = [study.all_cells[cells[place]].gain or 0.0 for cells in block.cells.values()]
    rivals = [
        (study.all_cells[cell].gain or 0.0, comparison, i)
        for comparison in block.of_part
        for i, cell in enumerate(comparison.cells)
        if comparison.settings[i] == block.settings[place]
    ]
    gain, comparison, i = max(rivals, key=itemgetter(0), default=(-math.inf, None, 0))
    return (comparison, i) if comparison and gain > max(means, default=-math.inf) else None


def on_part(block: Block, comparison: AgainstReference) -> str:
    """Says on how many of the block's settings a method is compared, for example "on 2 of 3 tasks".

    Empty if the method is compared on all of them.
    """
    own, every = len(comparison.settings), len(block.settings)
    noun = "tasks" if len({setting.task for setting in block.settings}) == every else "settings"
    return f"on {own} of {every} {noun}" if own < every else ""


def _at(values: Sequence[Item], place: int | None) -> Sequence[Item]:
    return values if place is None else values[place : place + 1]


def _best(study: Study, block: Block, place: int | None) -> tuple[str | None, tuple[str, ...] | None]:
    """The method with the best mean score, and the methods statistically indistinguishable from it.

    Scores are those on the setting at index `place` or, if it is None, means over all settings. Only methods
    that are compared in pairs count (see `Ranking.paired`).

    Returns (None, None) if there is no such method, or if all of them have the same mean. The second value
    is also None if no pair of methods has an interval.
    """
    ranking = block.ranking
    if ranking is None or not ranking.paired:
        return None, None
    names = ranking.paired
    means = np.array(
        [np.mean([study.gains([c])[1].mean() for c in _at(block.cells[name], place)]) for name in names]
    )
    first = int(means.argmax())
    if len(names) == 1:
        return names[first], None
    if np.ptp(means) <= RESOLUTION * study.size(block.cells[names[0]][0]):
        return None, None
    separations = ranking.separations if place is None else ranking.separations_on[place]
    if separations is None:
        return names[first], None
    equals = (name for i, name in enumerate(names) if i != first and separations[first, i] == 0)
    return names[first], tuple(equals)


def _detectable(block: Block, place: int | None) -> float | None:
    design = block.design
    if place is not None:
        effects = [comparison.effect.on([place]) for comparison in block.comparisons]
        design = power.of_effects(effects, block.claims * len(block.settings), block.level)
    return design.finds if design else None


def chance(study: Study, block: Block, place: int | None = None) -> str:
    """A sentence on the difference that the best method would show by chance if all methods were equal.

    Empty if the noise of fewer than two comparisons is known.
    """
    errors = []
    setting = None if place is None else block.settings[place]
    for comparison in block.all_comparisons if setting else block.comparisons:
        if setting and setting not in comparison.settings:
            continue
        own_place = comparison.settings.index(setting) if setting else None
        cells = [study.all_cells[number] for number in _at(comparison.cells, own_place)]
        # Half of the variance that examples and tuning add to a difference is the method's own. The other
        # half, the reference's, is the same for all methods and averages to zero.
        variances = [
            (cell.sd or 0.0) ** 2 / cell.finished + (part.examples + part.tuning) / 2
            for part, cell in zip(_at(comparison.effect.parts, own_place), cells, strict=True)
        ]
        if comparison.effect.error is not None:
            errors.append(math.sqrt(sum(variances)) / len(variances))
    if len(errors) < 2 or not any(errors):
        return ""
    shown = block.unit.difference(best_of_equals(errors), 1)
    return f"If all {len(errors)} methods were equal, the best would show about {shown} {block.unit.points}."


def _claim(
    block: Block,
    best: str | None,
    equals: Sequence[str] | None,
    difference: Against | None,
    lost: str,
) -> str:
    if not block.cells:
        return "Nothing can be claimed: no method has finished runs on every setting."
    if best is None:
        return "No difference can be claimed: all methods have the same mean score."
    alone, reference = len(block.cells) == 1, block.reference
    if reference is None:
        claim = f"Nothing to compare: {best} is the only method." if alone else _among(block, equals)
        return f"{claim} {block.no_reference}"
    if block.cells.get(best) == reference.cells:
        claim = f"No verdict: {lost}." if lost else _among(block, equals)
        claim = "Nothing is compared with it." if alone else claim
        return f"{reference.method} itself has the best mean. {claim}"
    if difference is None:
        return (
            f"No claim about {reference.method}: {best} shares no finished seed with it on some setting, and "
            "differences are taken seed by seed."
        )
    return _in_words(difference, reference.method, block.unit.size(block.threshold))


def _among(block: Block, equals: Sequence[str] | None) -> str:
    if equals is None:
        return "No two methods are distinguishable by these runs."
    count = len(block.ranking.paired if block.ranking else ()) - 1
    return f"Significantly worse: {count - len(equals)} of {many(count, 'other method')}."


def _in_words(difference: Against, reference: str, size: str) -> str:
    """The verdict as a sentence. `size` is the threshold with its unit."""
    answer, side = difference.verdict.answer, difference.verdict.side
    if difference.verdict.reason:
        return f"{answer.capitalize()}: {difference.verdict.reason}."
    if answer is Answer.BEYOND:
        return f"{side.capitalize()} than {reference} by more than {size}."
    if answer is Answer.WITHIN:
        if side:
            return f"Significantly {side} than {reference}, but practically equivalent (within {size})."
        return f"Practically equivalent to {reference} (within {size})."
    if answer is Answer.UNDECIDED:
        if side:
            return f"Significantly {side} than {reference}; may be under {size}."
        return f"Undecided: not shown to differ from {reference}."
    none = f"no difference from {reference} can be claimed."
    if difference.effect.error is None:
        return f"Too few seeds ({difference.effect.fewest}): {none}"
    return f"Every seed differs by the same amount, so the noise is unknown: {none}"


def _driven(block: Block, comparison: AgainstReference) -> str:
    """A sentence on the task that drives a mean difference. Empty if no task does."""
    if not (moved := moved_without(block, comparison)):
        return ""
    most = max(moved, key=lambda rest: abs(rest.difference - comparison.effect.difference))
    points = minus(block.unit.difference(most.difference))
    return f"The mean is driven by {most.task}: without it, it is {points} {block.unit.points}."


def moved_without(block: Block, comparison: AgainstReference) -> list[Without]:
    """The results of a comparison without one task, for each task that matters to the mean difference.

    A task matters if the mean difference changes by more than the threshold without it.
    """
    mean = comparison.effect.difference
    return [rest for rest in comparison.without if abs(rest.difference - mean) > block.threshold]


def limits(analysis: Analysis) -> list[str]:
    """The notes on the limits of a report's claims, each listed once."""
    notes = [note for block in analysis.blocks for note in block.rank_notes]
    return list(dict.fromkeys([*analysis.notes, *notes]))
