"""Guards withhold verdicts on differences that are not due to the methods themselves.

There is no verdict on a setting where nothing trained, or where the reference is no better than a head. A
method is not called better over some tasks if all of its runs collapsed on another one. If a method's best
rates lie at the edge of its window, its score is a lower bound, and the method is not called worse. Where
kept trials of a tuned reference collapsed, no method is called better.

Without tuning, differences are those of runs that did not collapse, and verdicts say so, with the collapse
rates of both sides.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tensorbench.methods.errors import first_few
from tensorbench.records.measures import Measure
from tensorbench.records.metrics import direction
from tensorbench.reports.blocks import (
    OUTER,
    Block,
    Comparison,
    Edge,
    Ends,
    Entrant,
    Level,
    Outer,
    Performance,
)
from tensorbench.reports.collapses import Collapses, rates_of, untrained
from tensorbench.reports.comparisons import with_collapses, with_window
from tensorbench.reports.complete import Material
from tensorbench.reports.inference.effects import Verdict, Word
from tensorbench.reports.inference.intervals import Array
from tensorbench.reports.inference.studies import CompleteStudies
from tensorbench.reports.inference.tasks import TaskTests
from tensorbench.reports.results import (
    CONVERGED,
    FLOOR,
    NO_ADAPTERS,
    OWN_SIZE,
    Cell,
    TaskAndBackbone,
    grouped,
)
from tensorbench.reports.units import listed, unit_of

#: The heads that every adapter should beat. Maps each family to its name in sentences.
HEADS = {FLOOR: "the head alone", CONVERGED: "the converged head"}

#: Sentences on differences from a failed reference, for collapsed runs and for a mean below a head's. Without
#: tuning, collapsed runs are in no difference.
OF_FAILED_RUNS = "Differences from it there measure its failed runs."
OF_OTHER_RUNS = "Differences from it there are those of runs that did not collapse."
OF_NO_BETTER = "Differences there are from a baseline that does no better than a head."
#: The sentence for a reference without a finished run.
OF_NO_SCORE = "It has no score there, so nothing is compared with it."
#: The share of a method's studies with kept trials at one edge from which its score counts as a lower bound.
#: Studies that kept no trial, since all of theirs diverged, do not count.
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
    #: The reason why no method is called better on a setting: kept trials of the reference collapsed.
    collapsed: Mapping[TaskAndBackbone, str] = field(default_factory=dict)
    #: The numbers of the cells that are not above the stated score by chance.
    at_chance: Collection[int] = ()


def _over(reasons: Mapping[TaskAndBackbone, str], settings: Collection[TaskAndBackbone]) -> str:
    """The reasons for these settings as text, with their tasks if there are several settings."""
    tasks = grouped((setting for setting in settings if setting in reasons), reasons.__getitem__)
    if len(settings) == 1:
        return "".join(tasks)
    return "; ".join(
        f"{why} on {first_few(list(dict.fromkeys(setting.task for setting in on)), MOST_TASKS)}"
        for why, on in tasks.items()
    )


def find_guards(
    material: Material, scored: Sequence[Cell], methods: Iterable[Cell], references: Iterable[Cell]
) -> Guards:
    """Finds the guards for the cells of a block's methods and of its reference.

    `scored` has all cells of the report. The mean of a cell with studies is its score after tuning.
    """
    results = material.results
    collapsed = {number: each for number, each in material.collapses.items() if each.count}
    reference = {cell.number for cell in references}
    numbers = reference | {cell.number for cell in methods}
    own = [cell for cell in scored if cell.number in numbers]
    nothing = untrained(results, own)
    sentences = []
    if nothing:
        tasks = listed(dict.fromkeys(setting.task for setting in nothing))
        sentences.append(f"Nothing trained on {tasks}: no adapter is shown to beat a constant answer.")
    lost, fallen = dict.fromkeys(nothing, NOTHING), {}
    for setting, cells in grouped(own, lambda cell: cell.setting).items():
        if setting in lost:
            continue
        # Cells are only compared with heads of their metric; tuned cells with tuned heads, and untuned cells
        # with untuned heads.
        kinds = {(results.metrics[cell.number], results.is_tuned(cell)) for cell in cells}
        there = [
            cell
            for cell in scored
            if cell.setting == setting and (results.metrics[cell.number], results.is_tuned(cell)) in kinds
        ]
        baselines = [cell for cell in cells if cell.number in reference]
        failed, beaten = failed_references(there, baselines, collapsed), unbeaten(there)
        sentences += beaten or failed.values()
        counted = () if beaten else failed
        sentences += [str(collapsed[n]) for c in cells if (n := c.number) in collapsed and n not in counted]
        for baseline in baselines:
            if failed_references(there, [baseline], {}):
                lost[setting] = f"{baseline.method} is no better than a head"
            elif baseline.number in material.fell:
                fallen[setting] = f"kept trials of {baseline.method} collapsed"
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
            verb, rest = "failed", OF_FAILED_RUNS if cell.studies else OF_OTHER_RUNS
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
                f"No adapter has a better mean than the converged head on {setting}: "
                f"{unit.score(head.mean)} against {unit.score(best.mean)} at best ({best.method})."
            )
    return sentences


# --- verdicts after guards ---


def guarded(material: Material, block: Block, scored: Sequence[Cell]) -> Block:
    """Adds guards and edges to the block, and weakens the verdicts that they do not allow.

    `scored` has all cells of the report. The mean of a cell with studies is its score after `block.k` trials.
    """
    collapsed, of_reference = material.collapses, block.reference.on if block.reference else {}
    reference = {setting: each.cell for setting, each in of_reference.items()}
    methods = [cell for entrant in block.methods for cell in entrant.cells]
    guards = find_guards(material, scored, methods, reference.values())
    # The reference may be one from another budget.
    entrants = [*block.methods, *([block.reference] if block.reference else [])]
    at_chance = [each for entrant in entrants for each in entrant.on.values() if _at_chance(each, block)]
    guards = replace(
        guards,
        sentences=(*guards.sentences, *_chance_sentences(at_chance)),
        at_chance={each.cell.number for each in at_chance},
    )
    edges = {entrant.method: edges_of(entrant) for entrant in entrants}
    outer = {entrant.method: outer_of(entrant) for entrant in entrants}
    sides = _Sides(material, guards, block, reference, edges, outer)

    def left(entrant: Entrant) -> Entrant:
        cells = {setting: each.cell for setting, each in entrant.on.items()}
        claims = len(block.claims)
        differences = {
            k: sides.left(each, entrant.method, cells, claims) for k, each in entrant.differences.items()
        }
        return replace(entrant, differences=differences)

    def left_of_level(level: Level) -> Level:
        if level.comparison is None:
            return level
        claims = sum(other.comparison is not None for other in block.levels)
        return replace(level, comparison=sides.left(level.comparison, level.method, level.cells, claims))

    def over_tasks(tests: TaskTests) -> TaskTests:
        of_method = {e.method: {s: own.cell for s, own in e.on.items()} for e in block.methods}
        rows = (
            replace(row, verdict=sides.verdict(row.verdict, row.method, of_method[row.method], None))
            for row in tests.rows
        )
        return replace(tests, rows=tuple(rows))

    of_levels = (cell for level in block.levels for cell in level.cells.values())
    numbers = dict.fromkeys(cell.number for cell in (*reference.values(), *methods, *of_levels))
    return replace(
        block,
        guards=guards.sentences,
        over_tasks=block.over_tasks and over_tasks(block.over_tasks),
        edges=tuple(own[None] for own in edges.values() if None in own),
        entrants=tuple(map(left, block.entrants)),
        part=tuple(map(left, block.part)),
        levels=tuple(map(left_of_level, block.levels)),
        collapsed=tuple(
            each for number in numbers if (each := collapsed.get(number)) is not None and each.count
        ),
    )


#: The cells of a method, by setting.
Cells = Mapping[TaskAndBackbone, Cell]
#: The edges of a method on each setting and, under None, over all of them. Settings without one are absent.
Edges = Mapping[TaskAndBackbone | None, Edge]


@dataclass(frozen=True)
class _Sides:
    """Weakens the verdicts of a block's comparisons if either side gives a reason for it."""

    material: Material
    guards: Guards
    block: Block
    reference: Cells
    #: The edges of the block's methods and of its reference, by name.
    edges: Mapping[str, Edges]
    #: How many of their kept trials lie in the outer fifths of their windows, by name.
    outer: Mapping[str, Mapping[TaskAndBackbone | None, Outer]]

    def left(self, comparison: Comparison, method: str, cells: Cells, claims: int) -> Comparison:
        """Returns a method's comparison with bounds, and with verdicts weakened where guards require it.

        Rates of collapse are added to the verdicts. They are compared at a level that is simultaneous over
        `claims` comparisons, and on single settings also over the settings.
        """

        def one(each: Comparison, cells: Cells, at: TaskAndBackbone | None) -> Comparison:
            own, other = (bool(edge) for edge in self._edges(method, at))
            bound = "" if own == other else "≥" if own else "≤"
            level = each.effect.level(claims if at is None else claims * len(self.block.settings))
            references = [self.reference[setting] for setting in cells]
            rates = rates_of(self.material.collapses, cells.values(), references, level)
            verdict = with_collapses(self.verdict(each.verdict, method, cells, at), rates)
            outer, others = (self.outer.get(name, {}).get(at) for name in (method, self.block.against))
            ends = Ends(outer, others, self.block.unit)
            verdict = with_window(verdict, each.interval, self.block.threshold, ends)
            return replace(each, verdict=verdict, bound=bound, collapses=rates, ends=ends)

        on = {
            setting: one(each, {setting: cells[setting]}, setting) for setting, each in comparison.on.items()
        }
        return replace(one(comparison, cells, None), on=on)

    def _edges(self, method: str, at: TaskAndBackbone | None) -> tuple[Edge | None, Edge | None]:
        """The edge of a method and that of the reference, on a setting or, if `at` is None, over all."""
        own, other = (self.edges.get(name, {}).get(at) for name in (method, self.block.against))
        return own, other

    def verdict(self, verdict: Verdict, method: str, cells: Cells, at: TaskAndBackbone | None) -> Verdict:
        """The verdict over the settings of `cells`, weakened if necessary. `at` is None for all settings."""
        both = {setting: (self.reference[setting], cell) for setting, cell in cells.items()}
        lost = dict(self.guards.lost)
        for setting, pair in both.items():
            if all(cell.number in self.guards.at_chance for cell in pair):
                lost.setdefault(setting, "neither is above chance")
        if why := _over(lost, cells.keys()):
            return Verdict(Word.NONE, reason=why)
        if why := self._doubts([cell for pair in both.values() for cell in pair]):
            return Verdict(Word.NONE, reason=why)
        if why := _unequal_effort(verdict, both.values()):
            return Verdict(Word.INCONCLUSIVE, reason=why)
        if verdict.side == "better" and (why := _over(self.guards.collapsed, cells.keys())):
            return Verdict(Word.INCONCLUSIVE, reason=why)
        references = {setting: self.reference[setting] for setting in cells}
        for side, name, own in (("better", method, cells), ("worse", self.block.against, references)):
            if verdict.side == side and at is None and (tasks := self._collapsed_elsewhere(own)):
                return Verdict(Word.INCONCLUSIVE, reason=f"all runs of {name} collapsed on {listed(tasks)}")
        edges = self._edges(method, at)
        # A method whose score is a lower bound may be better than it seems. So may the reference.
        for edge, side in zip(edges, ("worse", "better"), strict=True):
            if edge and verdict.side == side:
                return Verdict(Word.INCONCLUSIVE, reason=f"the best rates of {edge.method} lie at an edge")
        numbers = {cell.number for cell in (*cells.values(), *references.values())}
        if verdict.word is Word.EQUIVALENT and (numbers & self.material.fell or any(edges)):
            return Verdict(Word.INCONCLUSIVE)
        return verdict

    def _doubts(self, cells: Iterable[Cell]) -> str:
        """Why a table of another program allows no verdict on these cells. Empty if it does."""
        results = self.material.results
        reasons = (
            results.experiment(seed.experiment).source.doubts.get(seed.trial_id, "")
            for cell in cells
            for seed in cell.trials
        )
        return next(filter(None, reasons), "")

    def _collapsed_elsewhere(self, cells: Cells) -> list[str]:
        """The tasks not in `cells` on which all runs of a method collapsed.

        Means leave these tasks out, so a mean over the others may flatter the method. Tasks with missing runs
        do not count.
        """
        own = next(iter(cells.values()))
        there = [
            cell
            for cell in self.material.results.all_cells
            if (cell.experiment, cell.method, cell.budget) == (own.experiment, own.method, own.budget)
            and cell.setting not in cells
            and self.material.all_collapsed(cell)
        ]
        return list(dict.fromkeys(cell.task for cell in there))


def _stated(cell: Cell, measure: Measure) -> float | None:
    """What a table of another program states of a cell. None if it does not."""
    stated = (seed.record.measure(measure) for seed in cell.trials)
    return next((value for value in stated if value is not None), None)


def _at_chance(own: Performance, block: Block) -> bool:
    """Whether a method is not above the score by chance, if a table of another program states it.

    It is above chance if its 95% interval is or, without an interval, if its score is.
    """
    chance, score = _stated(own.cell, Measure.GUESSING_SCORE), own.scores.get(block.k)
    if chance is None or score is None:
        return False
    sign = direction(block.metric)
    return min(sign * bound for bound in score.interval or (score.value,)) <= sign * chance


def _chance_sentences(at_chance: Sequence[Performance]) -> Iterator[str]:
    """Yields sentences on the methods that are not above chance, each on the tasks with the same ones."""
    names: defaultdict[TaskAndBackbone, list[str]] = defaultdict(list)
    chances = {}
    for cell in (each.cell for each in at_chance):
        chance = unit_of(cell.metric, cell.unit).score(_stated(cell, Measure.GUESSING_SCORE))
        chances[cell.setting] = chance
        names[cell.setting] += [] if cell.method in names[cell.setting] else [cell.method]
    for (chance, methods), on in grouped(names, lambda s: (chances[s], tuple(names[s]))).items():
        tasks = first_few(list(map(str, on)), MOST_TASKS)
        yield f"Not shown to be above chance ({chance}) on {tasks}: {first_few(methods, MOST_TASKS)}."


def _unequal_effort(verdict: Verdict, pairs: Iterable[tuple[Cell, Cell]]) -> str:
    """Why a verdict may be due to unequal effort of tuning. Empty if it is not.

    `pairs` are cells of the reference and of the method. The better side must not have been tuned more, and
    equivalent methods must have been tuned alike.
    """
    for reference, cell in pairs:
        own, other = _stated(cell, Measure.EFFORT), _stated(reference, Measure.EFFORT)
        if own is None or other is None or own == other:
            continue
        more = Word.BETTER if own > other else Word.WORSE
        if verdict.word in (more, Word.EQUIVALENT):
            return f"unequal effort of tuning, {own:g} against {other:g}"
    return ""


def edges_of(entrant: Entrant) -> Edges:
    """The edges at which the kept trials of all settings together, and those of each setting, gather."""
    outer = outer_of(entrant)
    if not outer:
        return {}
    plan = next(plan for cell in entrant.cells if (plan := cell.studies))
    low, high = plan.ends
    half = math.sqrt(high / low)
    edges: dict[TaskAndBackbone | None, Edge] = {}
    for setting, own in outer.items():
        if own.upper >= MOST * own.kept:
            wider, centre = (low, max(high, min(10 * high, LARGEST))), min(high, LARGEST / half)
            edges[setting] = Edge(entrant.method, "upper", wider, max(centre, plan.centre))
        elif own.lower >= MOST * own.kept:
            wider, centre = (min(low, max(low / 10, SMALLEST)), high), max(low, SMALLEST * half)
            edges[setting] = Edge(entrant.method, "lower", wider, min(centre, plan.centre))
    return edges


def outer_of(entrant: Entrant) -> dict[TaskAndBackbone | None, Outer]:
    """How many kept trials lie in the outer fifths of windows, of each setting and, under None, of all.

    Settings without a kept trial are absent. Empty without tuning.
    """
    plans = [plan for cell in entrant.cells if (plan := cell.studies)]
    if not plans or any(studies.offsets is None for studies in entrant.studies):
        return {}
    # In widths of the window, from -0.5 to 0.5.
    widths = [_kept(studies) / plan.decades for studies, plan in zip(entrant.studies, plans, strict=True)]
    kept: dict[TaskAndBackbone | None, Array] = {None: np.concatenate(widths)}
    kept |= zip(entrant.on, widths, strict=True)
    return {
        setting: Outer(
            entrant.method,
            int((places < OUTER - 0.5).sum()),
            int((places > 0.5 - OUTER).sum()),
            len(places),
        )
        for setting, places in kept.items()
        if len(places)
    }


def _kept(studies: CompleteStudies) -> Array:
    """The offset, in decades, of each study's kept trial. Leaves out studies whose trials all diverged."""
    assert studies.offsets is not None
    losses = np.where(np.isfinite(studies.losses), studies.losses, np.inf)
    kept: Array = studies.offsets[np.arange(studies.count), losses.argmin(1)]
    return kept[np.isfinite(losses.min(1))]
