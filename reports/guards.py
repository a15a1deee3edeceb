"""Guards withhold verdicts on differences that are not due to the methods themselves.

There is no verdict on a setting where nothing trained, or where the reference is no better than a head. Where
runs of the reference collapsed, no method is called better. If some seeds of a method diverged, it is not
called better either, since only its other seeds have a score. If a method's best rates lie at the edge of its
window, its score is a lower bound, and the method is not called worse.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tensorbench.methods.errors import first_few
from tensorbench.reports.blocks import Block, Comparison, Edge, Entrant, Level
from tensorbench.reports.collapses import DIVERGED, Collapses, untrained
from tensorbench.reports.complete import Material
from tensorbench.reports.inference.effects import Answer, Verdict
from tensorbench.reports.inference.intervals import Array
from tensorbench.reports.inference.studies import CompleteStudies
from tensorbench.reports.results import (
    CONVERGED,
    FLOOR,
    NO_ADAPTERS,
    OWN_SIZE,
    Cell,
    Results,
    TaskAndBackbone,
    grouped,
)
from tensorbench.reports.units import listed, unit_of

#: The heads that every adapter should beat. Maps each family to its name in sentences.
HEADS = {FLOOR: "the head alone", CONVERGED: "the converged head"}

#: Sentences on differences from a failed reference, for collapsed runs and for a mean below a head's.
OF_FAILED_RUNS = "Differences from it there measure its failed runs."
OF_NO_BETTER = "Differences there are from a baseline that does no better than a head."
#: The sentence for a reference without a finished run.
OF_NO_SCORE = "It has no score there, so nothing is compared with it."
#: A kept trial is at an edge if its rate lies within this share of the window from one of its ends.
OUTER = 0.2
#: The share of a method's studies with kept trials at one edge from which its score counts as a lower bound.
MOST = 0.5
#: The limits within which the rates of proposed windows stay.
SMALLEST, LARGEST = 2e-6, 0.5
#: The largest number of tasks that the reason for a withheld verdict names.
MOST_TASKS = 4
#: The reason why there is no verdict where nothing trained.
NOTHING = "nothing trained"


@dataclass(frozen=True)
class Guards:
    """The reasons to withhold verdicts on the methods of a block."""

    #: Sentences that reports show before the answer.
    sentences: tuple[str, ...] = ()
    #: The reason why there is no verdict on a setting. Settings with verdicts are absent.
    lost: Mapping[TaskAndBackbone, str] = field(default_factory=dict)
    #: The reason why no method is called better on a setting: runs of the reference collapsed.
    collapsed: Mapping[TaskAndBackbone, str] = field(default_factory=dict)

    def left(self, verdict: Verdict, settings: Sequence[TaskAndBackbone]) -> Verdict:
        """Returns the verdict over these settings, weakened if a guard requires it.

        If one of the settings is in `lost`, there is no verdict. If one is in `collapsed`, "better" becomes
        undecided.
        """
        if why := _over(self.lost, settings):
            return Verdict(Answer.NONE, reason=why)
        if verdict.side == "better" and (why := _over(self.collapsed, settings)):
            return Verdict(Answer.UNDECIDED, reason=why)
        return verdict


def _over(reasons: Mapping[TaskAndBackbone, str], settings: Sequence[TaskAndBackbone]) -> str:
    """The reasons for these settings as text, with their tasks if there are several settings."""
    tasks = grouped((setting for setting in settings if setting in reasons), reasons.__getitem__)
    if len(settings) == 1:
        return "".join(tasks)
    return "; ".join(
        f"{why} on {first_few(list(dict.fromkeys(setting.task for setting in on)), MOST_TASKS)}"
        for why, on in tasks.items()
    )


def find_guards(
    material: Material, scored: Sequence[Cell], methods: Collection[int], reference: Collection[int]
) -> Guards:
    """Finds the guards for the methods of a block.

    Args:
        scored: All cells of the report. The mean of a cell with studies is its score after tuning.
        methods: The numbers of the block's cells.
        reference: The numbers of the reference's cells.
    """
    results, collapsed = material.results, material.collapses
    own = [cell for cell in scored if cell.number in methods or cell.number in reference]
    nothing = untrained(results, own)
    sentences = []
    if nothing:
        tasks = listed(dict.fromkeys(setting.task for setting in nothing))
        sentences.append(f"Nothing trained on {tasks}: no adapter is shown to beat a constant answer.")
    lost, fallen = dict.fromkeys(nothing, NOTHING), {}
    for setting, cells in grouped(own, lambda cell: cell.setting).items():
        if setting in lost:
            continue
        # Tuned cells are only compared with tuned heads, and untuned cells only with untuned heads.
        kinds = {results.is_tuned(cell) for cell in cells}
        there = [cell for cell in scored if cell.setting == setting and results.is_tuned(cell) in kinds]
        baselines = [cell for cell in cells if cell.number in reference]
        failed, beaten = failed_references(there, baselines, collapsed), unbeaten(there)
        sentences += beaten or failed.values()
        counted = () if beaten else failed
        sentences += [str(collapsed[n]) for c in cells if (n := c.number) in collapsed and n not in counted]
        for baseline in baselines:
            if failed_references(there, [baseline], {}):
                lost[setting] = f"{baseline.method} is no better than a head"
            elif baseline.number in collapsed:
                fallen[setting] = f"runs of {baseline.method} collapsed"
    return Guards(tuple(dict.fromkeys(sentences)), lost, fallen)


# --- references and heads ---


def failed_references(
    cells: Sequence[Cell], references: Iterable[Cell], collapses: Mapping[int, Collapses]
) -> dict[int, str]:
    """A sentence for each reference that failed, by the number of its cell.

    A reference has failed if some of its runs collapsed, or if its mean is not above that of a head on the
    same setting (see `HEADS`). Methods without an adapter, and cells without a run that ended, never count as
    failed.

    `cells` are all cells of the report. `collapses` has the collapsed runs by the number of the cell.
    """
    sentences = {}
    for cell in (cell for cell in references if cell.family not in NO_ADAPTERS):
        unit, collapsed, reasons = unit_of(cell.metric, cell.unit), collapses.get(cell.number), []
        for family, head in HEADS.items():
            heads = [
                other
                for other in cells
                if (other.family, other.setting, other.metric) == (family, cell.setting, cell.metric)
                and other.gain is not None
            ]
            best = max(heads, key=lambda other: other.gain or 0.0, default=None)
            if best is not None and cell.gain is not None and (best.gain or 0.0) >= cell.gain:
                reasons.append(
                    f"it is not above {head} ({unit.score(cell.mean)} against {unit.score(best.mean)})"
                )
                break
        # Means that are close to each other show no failure.
        verb, rest = "scored no better than a head", OF_NO_BETTER
        if collapsed is not None:
            verb, rest = "failed", OF_FAILED_RUNS
            reasons.append(collapsed.counted)
        if reasons:
            name = cell.method if cell.budget == OWN_SIZE else f"{cell.method} ({cell.budget})"
            sentences[cell.number] = (
                f"{name} {verb} on {cell.setting}: {'; '.join(reasons)}. "
                f"{OF_NO_SCORE if cell.gain is None else rest}"
            )
    return sentences


def unbeaten(cells: Iterable[Cell]) -> list[str]:
    """A sentence for each setting on which no adapter has a higher mean than the converged head.

    There is no sentence if the converged head has not run, or if runs of adapters are missing.
    """
    sentences = []
    for setting, of_setting in grouped(cells, lambda cell: cell.setting).items():
        head = next((cell for cell in of_setting if cell.family == CONVERGED and cell.gain is not None), None)
        adapters = [cell for cell in of_setting if cell.family not in NO_ADAPTERS]
        scored = [cell for cell in adapters if cell.gain is not None]
        if head is None or not scored or any(cell.missing for cell in adapters):
            continue
        best = max(scored, key=lambda cell: cell.gain or 0.0)
        if (best.gain or 0.0) <= (head.gain or 0.0):
            unit = unit_of(head.metric, head.unit)
            sentences.append(
                f"No adapter beats the converged head on {setting}: {unit.score(head.mean)} against "
                f"{unit.score(best.mean)} at best ({best.method})."
            )
    return sentences


# --- verdicts after guards ---


def guarded(material: Material, block: Block, scored: Sequence[Cell]) -> Block:
    """Adds guards and edges to the block, and weakens the verdicts that they do not allow.

    `scored` has all cells of the report. The mean of a cell with studies is its score after `block.k` trials.
    """
    results, collapsed = material.results, material.collapses
    reference = block.reference.cells if block.reference else ()
    methods = [number for entrant in block.methods for number in entrant.cells]
    guards = find_guards(material, scored, methods, reference)
    edges = {entrant.method: _edges(results, entrant) for entrant in block.methods}
    none: list[Edge | None] = [None] * (1 + len(block.settings))
    of_reference = edges.get(block.against, none)
    on = dict(zip(block.settings, reference, strict=False))
    sides = _Sides(results, guards, block.against, on, collapsed)

    def left(entrant: Entrant) -> Entrant:
        places = [0, *(1 + block.settings.index(setting) for setting in entrant.settings)]
        pairs = [(own, of_reference[at]) for own, at in zip(edges[entrant.method], places, strict=True)]
        cells = dict(zip(entrant.settings, entrant.cells, strict=True))
        differences = {
            k: sides.left(each, entrant.method, cells, pairs) for k, each in entrant.differences.items()
        }
        return replace(entrant, differences=differences)

    def left_of_level(level: Level) -> Level:
        if level.comparison is None:
            return level
        # A level with a comparison has a cell on every setting, and no rates.
        cells = {s: n for s, n in zip(block.settings, level.cells, strict=True) if n is not None}
        pairs = list(zip(none, none, strict=True))
        return replace(level, comparison=sides.left(level.comparison, level.method, cells, pairs))

    of_levels = (number for level in block.levels for number in level.cells if number is not None)
    cells = [*reference, *methods, *of_levels]
    return replace(
        block,
        guards=guards.sentences,
        edges=tuple(edge for edge, *_ in edges.values() if edge),
        entrants=tuple(map(left, block.entrants)),
        part=tuple(map(left, block.part)),
        levels=tuple(map(left_of_level, block.levels)),
        collapsed=tuple(collapsed[number] for number in dict.fromkeys(cells) if number in collapsed),
    )


@dataclass(frozen=True)
class _Sides:
    """Weakens the verdicts of a block's comparisons if either side gives a reason for it."""

    results: Results
    guards: Guards
    against: str
    #: The numbers of the reference's cells, by setting.
    reference: Mapping[TaskAndBackbone, int]
    collapsed: Mapping[int, Collapses]

    def left(
        self,
        comparison: Comparison,
        method: str,
        cells: Mapping[TaskAndBackbone, int],
        edges: Sequence[tuple[Edge | None, Edge | None]],
    ) -> Comparison:
        """Returns a method's comparison with its verdicts weakened where guards require it.

        `cells` has the numbers of the method's cells by setting. `edges` has pairs of the method's edge and
        the reference's edge, first over all settings and then on each setting.
        """
        settings = list(cells)
        pairs = [(number, self.reference[setting]) for setting, number in cells.items()]
        fell = [bool({*pair} & self.collapsed.keys()) for pair in pairs]
        lost = [[self._diverged(number) for number in pair] for pair in pairs]
        everywhere = range(len(settings))
        elsewhere = [self._diverged_elsewhere(number, settings) for number in pairs[0]]

        def judged(verdict: Verdict, places: Sequence[int], at: tuple[Edge | None, Edge | None]) -> Verdict:
            verdict = self.guards.left(verdict, [settings[place] for place in places])
            names = (method, self.against)
            diverged = [any(lost[place][of] for place in places) for of in range(2)]
            for name, side, here, beyond in zip(names, ("better", "worse"), diverged, elsewhere, strict=True):
                if verdict.side == side and (here or (beyond and places is everywhere)):
                    return Verdict(Answer.UNDECIDED, reason=f"seeds of {name} diverged")
            # A method whose score is a lower bound may be better than it seems. So may the reference.
            for edge, side in zip(at, ("worse", "better"), strict=True):
                if edge and verdict.side == side:
                    return Verdict(Answer.UNDECIDED, reason=f"the best rates of {edge.method} lie at an edge")
            if verdict.answer is Answer.WITHIN and (any(fell[place] for place in places) or any(at)):
                return Verdict(Answer.UNDECIDED, verdict.side)
            return verdict

        return replace(
            comparison,
            verdict=judged(comparison.verdict, everywhere, edges[0]),
            verdicts=tuple(
                judged(verdict, [place], edges[1 + place])
                for place, verdict in enumerate(comparison.verdicts)
            ),
        )

    def _diverged_elsewhere(self, number: int, settings: Sequence[TaskAndBackbone]) -> bool:
        """Whether no seed of the cell's method finished on some other setting, and some seed diverged there.

        Means leave that setting out, so a mean over `settings` may flatter the method. A setting with missing
        runs does not count.
        """
        own = self.results.all_cells[number]
        return any(
            self._diverged(cell.number)
            for cell in self.results.all_cells
            if (cell.experiment, cell.method, cell.budget) == (own.experiment, own.method, own.budget)
            and cell.setting not in settings
            and not (cell.finished or cell.missing)
        )

    def _diverged(self, number: int) -> bool:
        """Whether a seed of the cell diverged. False with studies, where diverged trials have a score."""
        if self.results.all_cells[number].studies:
            return False
        return any(seed.failure == DIVERGED for seed in self.results.of_cell(number))


def _edges(results: Results, entrant: Entrant) -> list[Edge | None]:
    """The edge over the studies of all settings together, then the edge on each setting.

    None stands for kept trials that do not gather at an edge.
    """
    plans = [plan for number in entrant.cells if (plan := results.all_cells[number].studies)]
    if not plans or any(studies.offsets is None for studies in entrant.studies):
        return [None] * (1 + len(entrant.cells))
    low, high = plans[0].ends
    # In widths of the window, from -0.5 to 0.5.
    kept = [_kept(studies) / plan.decades for studies, plan in zip(entrant.studies, plans, strict=True)]
    edges: list[Edge | None] = []
    for places in (np.concatenate(kept), *kept):
        edge = None
        if len(places) and (places > 0.5 - OUTER).mean() >= MOST:
            edge = Edge(entrant.method, "upper", (low, min(10 * high, LARGEST)), high)
        elif len(places) and (places < OUTER - 0.5).mean() >= MOST:
            edge = Edge(entrant.method, "lower", (max(low / 10, SMALLEST), high), low)
        edges.append(edge)
    return edges


def _kept(studies: CompleteStudies) -> Array:
    """The offset, in decades, of each study's kept trial. Leaves out studies whose trials all diverged."""
    assert studies.offsets is not None
    losses = np.where(np.isfinite(studies.losses), studies.losses, np.inf)
    kept: Array = studies.offsets[np.arange(studies.count), losses.argmin(1)]
    return kept[np.isfinite(losses.min(1))]
