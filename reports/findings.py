"""The first screen of the page: what each budget says, in one line, and in words what can be claimed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from reports.analysis import Analysis, Block
from reports.collapses import Collapses
from reports.comparisons import AgainstReference, Without, judged
from reports.inference import power
from reports.inference.effects import Answer, Effect, Verdict, effect
from reports.inference.intervals import RESOLUTION, Bounds, simultaneous
from reports.inference.orders import best_of_equals
from reports.study import Cell, Item, Study, TaskAndBackbone
from reports.units import minus
from reports.words import many


@dataclass(frozen=True)
class Against:
    """How far a method is from the reference, over the settings of a block or on one of them."""

    effect: Effect
    #: Holds at once with those of all other methods of the block; on one setting, with theirs on all.
    interval: Bounds | None
    verdict: Verdict
    #: Whether seed pairs are lost.
    lost: bool
    reference: str

    @property
    def certain(self) -> bool:
        """Whether the interval is on one side of zero."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def against(block: Block, found: AgainstReference, place: int | None = None, beside: int = 0) -> Against:
    """The comparison of a method, or of the setting at that place among its own alone.

    Its interval is simultaneous with those of the block and, over all settings, also with `beside` others of
    elsewhere.
    """
    assert block.reference is not None
    shown, floor = found.effect, found.if_floor.effect if found.if_floor else None
    claims = block.claims + beside
    if place is not None:
        shown, floor = shown.on([place]), floor.on([place]) if floor else None
        claims = block.claims * len(block.settings)
    level = simultaneous(claims, block.level)
    said = judged(shown, floor, level, block.threshold, collapsed=bool(collapsed_on(found, place)))
    return Against(shown, shown.interval(level), said, found.lost > 0, block.reference.method)


def collapsed_on(found: AgainstReference, place: int | None) -> Sequence[Collapses]:
    """The sides of which runs collapsed, over all settings of a comparison or on the one at that place."""
    return found.collapsed if place is None else found.collapses[place]


@dataclass(frozen=True)
class Costs:
    """What a method costs on some settings: the least and the most."""

    parameters: tuple[float, float]
    #: MiB at the peak; None where not every setting has it.
    peak_mib: tuple[float, float] | None


@dataclass(frozen=True)
class Finding:
    """What one block says, over its settings or on one of them."""

    block: Block
    #: None: over all settings of the block.
    setting: TaskAndBackbone | None
    #: The method with the best mean score; None where no method is before all others.
    best: str | None
    #: Methods that are not told apart from the best; None where nothing tells methods apart.
    equals: tuple[str, ...] | None
    #: The best against the reference; None where it is the reference, or cannot be compared.
    against: Against | None
    costs: Costs | None
    #: The smallest true difference from the reference that would have been found 80% of the time.
    finds: float | None
    #: What can be claimed, or why nothing can.
    claim: str


def findings(study: Study, blocks: Iterable[Block]) -> Iterator[Finding]:
    """One line a block, and below it one a setting where the block has several."""
    for block in blocks:
        if len(block.settings) == 1:
            yield _finding(study, block, 0)
            continue
        yield _finding(study, block, None)
        if block.cells:
            yield from (_finding(study, block, place) for place in range(len(block.settings)))


def _finding(study: Study, block: Block, place: int | None) -> Finding:
    setting = None if place is None else block.settings[place]
    best, equals = _best(study, block, place)
    comparison = next((c for c in block.comparisons if c.method == best), None)
    cells = _of(block.cells[best], place) if best else ()
    by_chance = chance(study, block, place)
    if better := _better_part(study, block, place, cells):
        comparison, place = better
        best, equals, cells = comparison.method, None, _of(comparison.cells, place)
    found = against(block, comparison, place) if comparison else None
    claims = [_claim(block, best, equals, found)]
    if better:
        claims.append(f"{best} ran {on_part(block, better[0])}.")
    if comparison:
        own = [side for side in collapsed_on(comparison, place) if side.method == best]
        claims += [by_chance, *map(str, own)]
        claims.append(_turned(block, comparison) if setting is None else "")
    return Finding(
        block=block,
        setting=setting,
        best=best,
        equals=equals,
        against=found,
        costs=_costs([study.all_cells[number] for number in cells]) if best else None,
        finds=_finds(block, None if setting is None else block.settings.index(setting)),
        claim=" ".join(filter(None, claims)),
    )


def _better_part(
    study: Study, block: Block, place: int | None, cells: Sequence[int]
) -> tuple[AgainstReference, int] | None:
    """The best on one setting of the methods that lack others, with its place there, if it is better than
    `cells`.
    """
    if place is None:
        return None
    means = [study.all_cells[number].gain or 0.0 for number in cells]
    there = [
        (study.all_cells[cell].gain or 0.0, found, i)
        for found in block.of_part
        for i, cell in enumerate(found.cells)
        if found.settings[i] == block.settings[place]
    ]
    gain, found, i = max(there, key=itemgetter(0), default=(-math.inf, None, 0))
    return (found, i) if found and gain > max(means, default=-math.inf) else None


def on_part(block: Block, found: AgainstReference) -> str:
    """On how many of the block's settings a method is compared; empty where on all."""
    there, every = len(found.settings), len(block.settings)
    what = "tasks" if len({setting.task for setting in block.settings}) == every else "settings"
    return f"on {there} of {every} {what}" if there < every else ""


def _of(values: Sequence[Item], place: int | None) -> Sequence[Item]:
    return values if place is None else values[place : place + 1]


def _best(study: Study, block: Block, place: int | None) -> tuple[str | None, tuple[str, ...] | None]:
    """The method with the best mean score, and which are not told apart from it.

    Of methods that are not compared pair by pair, because they are too many, none is the best.
    """
    ranking = block.ranking
    if ranking is None or not ranking.paired:
        return None, None
    names = ranking.paired
    means = np.array(
        [np.mean([study.gains([c])[1].mean() for c in _of(block.cells[name], place)]) for name in names]
    )
    first = int(means.argmax())
    if len(names) > 1 and np.ptp(means) <= RESOLUTION * study.size(block.cells[names[0]][0]):
        return None, None
    apart: NDArray[np.int64] | None
    apart = (
        ranking.separations if place is None else ranking.separations_on[place] if len(names) > 1 else None
    )
    if apart is None:
        return names[first], None
    return names[first], tuple(name for i, name in enumerate(names) if i != first and apart[first, i] == 0)


def _costs(cells: Sequence[Cell]) -> Costs:
    return Costs(
        parameters=(min(cell.parameters for cell in cells), max(cell.parameters for cell in cells)),
        peak_mib=_range(cell.peak_mib for cell in cells),
    )


def _range(values: Iterable[float | None]) -> tuple[float, float] | None:
    found = list(values)
    known = [value for value in found if value is not None]
    return (min(known), max(known)) if known and len(known) == len(found) else None


def _finds(block: Block, place: int | None) -> float | None:
    design = block.design
    if place is not None:
        effects = [effect([c.effect.parts[place]]) for c in block.comparisons]
        design = power.of_effects(effects, block.claims * len(block.settings), block.level)
    return design.finds if design else None


def chance(study: Study, block: Block, place: int | None = None) -> str:
    """What the best of the block's comparisons would show if all methods were equal, over all settings or on
    one; empty for a single one, and where nothing is known of the noise.
    """
    errors = []
    setting = None if place is None else block.settings[place]
    for found in (*block.comparisons, *(block.of_part if setting else ())):
        if setting and setting not in found.settings:
            continue
        place = found.settings.index(setting) if setting else None
        # Of what examples and tuning add to a difference, half is the method's own; the reference's part is
        # the same for all methods, and nothing on average.
        own = [
            (cell.sd or 0.0) ** 2 / cell.finished + (part.examples + part.tuning) / 2
            for part, number in zip(_of(found.effect.parts, place), _of(found.cells, place), strict=True)
            for cell in [study.all_cells[number]]
        ]
        if found.effect.error is not None:
            errors.append(math.sqrt(sum(own)) / len(own))
    if len(errors) < 2 or not any(errors):
        return ""
    shown = block.unit.difference(best_of_equals(errors), 1)
    return f"If all {len(errors)} methods were equal, the best would show about {shown} {block.unit.points}."


def _claim(block: Block, best: str | None, equals: Sequence[str] | None, found: Against | None) -> str:
    if not block.cells:
        return "Nothing can be claimed: no method has finished runs on every setting."
    if best is None:
        return "No difference can be claimed: all methods have the same mean score."
    alone = len(block.cells) == 1
    reference = block.reference
    if reference is None:
        told = f"Nothing to compare: {best} stands alone." if alone else _among(block, equals)
        return f"{told} {block.no_reference}"
    if block.cells.get(best) == reference.cells:
        told = "Nothing is compared with it." if alone else _among(block, equals)
        return f"{reference.method} itself has the best mean. {told}"
    if found is None:
        return (
            f"No claim about {reference.method}: {best} shares no finished seed with it on some setting, and "
            "differences are taken seed by seed."
        )
    return _said(found, reference.method, block.unit.size(block.threshold))


def _among(block: Block, equals: Sequence[str] | None) -> str:
    if equals is None:
        return "With what is here no two methods can be told apart."
    others = len(block.ranking.paired if block.ranking else ()) - 1
    return f"Shown to be worse: {others - len(equals)} of {many(others, 'other method')}."


def _said(found: Against, reference: str, size: str) -> str:
    """`size`: the threshold, with its unit."""
    answer, side = found.verdict.answer, found.verdict.side
    if answer is Answer.BEYOND:
        return f"{side.capitalize()} than {reference} by more than {size}."
    if answer is Answer.WITHIN:
        if side:
            return f"{side.capitalize()} than {reference}, by less than {size}."
        return f"Less than {size} from {reference}: for practice the same."
    if answer is Answer.UNDECIDED:
        if side:
            return f"{side.capitalize()} than {reference}; whether by more than {size} is open."
        return f"Open: {reference} may be as good, or better."
    none = f"no difference from {reference} can be claimed."
    if found.effect.error is None:
        return f"Too few seeds ({found.effect.fewest}): {none}"
    return f"That every seed differs by the same tells nothing of how much runs vary: {none}"


def _turned(block: Block, comparison: AgainstReference) -> str:
    """The task without which a mean difference has moved by more than the threshold, and most; empty where
    there is none.
    """
    whole = comparison.effect.difference
    if not (moved := moved_without(block, comparison)):
        return ""
    most = max(moved, key=lambda one: abs(one.difference - whole))
    points = minus(block.unit.difference(most.difference))
    return f"The mean is driven by {most.task}: without it, it is {points} {block.unit.points}."


def moved_without(block: Block, found: AgainstReference) -> list[Without]:
    """The tasks without which a mean difference has moved by more than the threshold."""
    whole = found.effect.difference
    return [one for one in found.without if abs(one.difference - whole) > block.threshold]


def limits(analysis: Analysis) -> list[str]:
    """What limits all claims of a report, each once."""
    notes = [note for block in analysis.blocks for note in block.rank_notes]
    return list(dict.fromkeys([*analysis.notes, *notes]))
