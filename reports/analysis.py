"""What the stored scores say: comparisons with LoRA, ranks and groups; and where they say nothing.

One block is one budget, of settings with one metric and of methods that were made alike. Within it methods
are compared over settings (a task on a backbone), seed by seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bench.metrics import METRICS
from reports.collapses import Collapses, collapses
from reports.comparisons import AgainstReference, Reference, against_reference, find_reference
from reports.evidence import Evidence, gather
from reports.inference import power
from reports.inference.intervals import LEAST_SEEDS, Array, of_each
from reports.inference.power import Design
from reports.ranking import Ranking, normalise, rank
from reports.recipes import Alike, Recipe, alike, in_words, recipes
from reports.study import Cell, Study, TaskAndBackbone, block_order, grouped
from reports.thresholds import Asked, threshold_of, thresholds
from reports.units import Unit, unit_of
from reports.words import listed, many


@dataclass(frozen=True)
class Block:
    """What can be said about the methods of one budget that were made alike, by one metric."""

    budget: str
    metric: str
    #: The one task of its settings, where scores have that task's units; else empty.
    task: str
    #: The budget, with what tells the block from others of the same budget.
    title: str
    #: How scores are shown.
    unit: Unit
    #: The smallest difference that matters, in the metric's units.
    threshold: float
    #: Those on which there is something to compare.
    settings: tuple[TaskAndBackbone, ...]
    #: The cells of every method that has runs on all of them, in the order of the settings.
    cells: Mapping[str, tuple[int, ...]] = field(repr=False)
    #: Method -> why it is in no comparison and no rank.
    left_out: Mapping[str, str]
    #: What is asked for in place of LoRA, and how many such blocks hold at once: one for each reference.
    asked: str = ""
    families: int = 1
    #: What the methods are compared with; None where there is no such thing.
    reference: Reference | None = None
    #: Why there is no such thing; else empty.
    no_reference: str = ""
    comparisons: tuple[AgainstReference, ...] = ()
    #: Method -> its cells on the settings that it has, where it lacks others; and what is said of it there.
    #: None of it is in a mean over all settings.
    cells_of_part: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    of_part: tuple[AgainstReference, ...] = ()
    #: What the comparisons could find; None where nothing is known of the noise.
    design: Design | None = None
    #: None where no method takes part.
    ranking: Ranking | None = None
    #: Method -> its runs' scores between head only, 0, and full fine-tuning, 1: a performance profile.
    normalised: Mapping[str, Array] = field(default_factory=dict)
    #: What is to be said of the comparisons, and why a method, or every one, is in none.
    notes: tuple[str, ...] = ()
    #: The same of ranks and groups.
    rank_notes: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """The title, with the reference where there are several."""
        return f"{self.title} · against {self.asked}" if self.families > 1 else self.title

    @property
    def level(self) -> float:
        """What all intervals of the block hold at once with."""
        return of_each(self.families)

    @property
    def held(self) -> str:
        """The level in words, with what holds beyond the block."""
        together = f", those of all {self.families} references together with 95%"
        return f"{100 * self.level:.4g}%" + together * (self.families > 1)

    @property
    def methods(self) -> tuple[str, ...]:
        """Those that take part, best mean rank first."""
        return self.ranking.methods if self.ranking else tuple(self.cells)

    @property
    def collapsed(self) -> tuple[Collapses, ...]:
        """Each side of which runs collapsed, once."""
        every = (side for found in (*self.comparisons, *self.of_part) for side in found.collapsed)
        return tuple(dict.fromkeys(every))

    @property
    def claims(self) -> int:
        """How many comparisons hold at once, those on a part of the settings included."""
        return len(self.comparisons) + len(self.of_part)

    @property
    def without_examples(self) -> tuple[TaskAndBackbone, ...]:
        """The settings on which some comparison is of seeds alone."""
        alone = {
            setting
            for comparison in (*self.comparisons, *self.of_part)
            for setting, part in zip(comparison.settings, comparison.effect.parts, strict=True)
            if part.count is None
        }
        return tuple(setting for setting in self.settings if setting in alone)


@dataclass(frozen=True)
class Analysis:
    """A study with everything that is computed from it."""

    study: Study
    #: The smallest difference that matters, by metric.
    thresholds: Mapping[str, float]
    blocks: tuple[Block, ...]
    #: What whoever reads the report must know, the notes of the study included.
    notes: tuple[str, ...]
    #: The runs as far as they were read.
    evidence: Evidence = field(repr=False)
    #: The cells of which runs collapsed, by number.
    collapses: Mapping[int, Collapses]


def analyse(study: Study, threshold: Asked = None) -> Analysis:
    """Computes what the report shows beyond means. Raises UserError as `thresholds` does."""
    matters = thresholds((cell.metric for cell in study.all_cells if cell.metric), threshold)
    made = recipes(study)
    budgets = sorted(dict.fromkeys(cell.budget for cell in study.all_cells), key=block_order)
    begun = [
        _referred(study, block, made) for budget in budgets for block in _blocks(study, budget, made, matters)
    ]
    evidence, collapsed = gather(study, _needed(begun)), collapses(study)
    blocks = tuple(_finished(evidence, block, made, collapsed) for block in begun)
    notes = (*study.notes, *evidence.notes, *_sparse(study), *_metrics(study))
    return Analysis(study, matters, blocks, notes, evidence, collapsed)


def _blocks(
    study: Study, budget: str, made: Mapping[int, Recipe], matters: Mapping[str, float]
) -> Iterator[Block]:
    """The blocks of a budget, with who takes part in each."""
    planned = [cell for cell in study.all_cells if cell.budget == budget]
    # Scores in units have no common mean over tasks.
    by_metric = grouped(planned, lambda cell: measured(study.metrics[cell.number], cell.task))
    for (metric, task), cells in by_metric.items():
        groups = alike(made, grouped(cells, lambda cell: cell.method))
        for number, group in enumerate(groups):
            parts = [
                budget,
                *([f"{metric} on {task}" if task else metric] if len(by_metric) > 1 else []),
                *([f"recipe {number + 1}"] if number else []),
            ]
            begun = Block(
                budget=budget,
                metric=metric,
                task=task,
                title=" · ".join(part for part in parts if part),
                unit=unit_of(metric, next((cell.unit for cell in cells if cell.unit), "")),
                threshold=threshold_of(metric, matters, [c for some in group.methods.values() for c in some]),
                settings=(),
                cells={},
                left_out={},
                families=len(study.compared),
            )
            for asked, named in study.compared.items():
                kept = {*named, asked} if named else set(group.methods)
                methods = {method: some for method, some in group.methods.items() if method in kept}
                if not named or methods.keys() & {*named}:
                    block = _entrants(study, replace(begun, asked=asked), methods)
                    yield _apart(block, group, groups[0])


def measured(metric: str, task: str) -> tuple[str, str]:
    """The metric, with the task where its scores have that task's units."""
    return metric, task if metric and METRICS.get(metric).in_units else ""


def _apart(block: Block, group: Alike, first: Alike) -> Block:
    """Says in what a group differs from the first of its budget."""
    if group is first:
        return block
    note = (
        f"Run with another recipe than {listed(list(first.methods)[:3])} "
        f"({in_words(first.differs(group.cells))}): shown apart, and no verdict compares them."
    )
    return replace(block, notes=(note, *block.notes))


def _entrants(study: Study, block: Block, methods: Mapping[str, Sequence[Cell]]) -> Block:
    """Who of these takes part in the comparisons of a block, and who does not and why."""
    planned = [cell for cells in methods.values() for cell in cells]
    every = grouped(planned, lambda cell: cell.setting)
    # A setting on which hardly anything has run yet would keep everybody out.
    least = min(2, len(methods))
    settings = tuple(
        setting for setting, cells in every.items() if sum(cell.finished > 0 for cell in cells) >= least
    )
    taking_part: dict[str, tuple[int, ...]] = {}
    of_part: dict[str, tuple[int, ...]] = {}
    left_out: dict[str, str] = {}
    for method, cells in methods.items():
        found = {cell.setting: cell for cell in cells if cell.setting in settings}
        if not found:
            continue
        if reason := _absent(settings, found):
            left_out[method] = reason
            if there := tuple(cell.number for cell in found.values() if cell.finished):
                of_part[method] = there
        else:
            taking_part[method] = tuple(found[setting].number for setting in settings)
    notes = []
    if len(settings) < len(every):
        others = listed(setting for setting in every if setting not in settings)
        notes.append(f"Too few methods have finished runs on {others}: not in what follows.")
    if left_out:
        notes.append(
            f"{len(left_out)} of {many(len(taking_part) + len(left_out), 'method')} lack finished runs on "
            "some settings. They are compared on the others, and left out of this budget's means and ranks: "
            f"{listed(left_out)}."
        )
    if block.metric and not METRICS.get(block.metric).higher:
        notes.append(
            f"Less {block.metric} is better: differences are by how much less, so that more is better."
        )
    return replace(
        block,
        settings=settings,
        cells=taking_part,
        cells_of_part=of_part,
        left_out=left_out,
        notes=tuple(notes),
    )


def _absent(settings: Iterable[TaskAndBackbone], found: Mapping[TaskAndBackbone, Cell]) -> str:
    """Why a method does not take part; empty if it does."""
    if absent := [setting for setting in settings if setting not in found]:
        return f"not planned on {listed(absent)}"
    return "; ".join(
        f"0 of {cell.seeds} seeds on {cell.setting}" for cell in found.values() if not cell.finished
    )


def _referred(study: Study, block: Block, made: Mapping[int, Recipe]) -> Block:
    """The block with what its methods are compared with."""
    if not block.cells:
        return block
    first = [study.all_cells[number] for number in next(iter(block.cells.values()))]
    reference, missing = find_reference(study, block.budget, first, made, block.asked)
    return replace(block, reference=reference, no_reference=" ".join(missing), notes=(*block.notes, *missing))


def _needed(blocks: Sequence[Block]) -> list[int]:
    """The cells whose predictions the blocks need."""
    return [
        number
        for block in blocks
        for cells in (
            (block.reference.cells if block.reference else ()),
            *block.cells.values(),
            *block.cells_of_part.values(),
        )
        for number in cells
    ]


def _finished(
    evidence: Evidence, block: Block, made: Mapping[int, Recipe], collapsed: Mapping[int, Collapses]
) -> Block:
    if not block.cells:
        return block
    ranking = rank(evidence, block.cells, block.level)
    every, notes = against_reference(
        evidence,
        {**{method: block.cells[method] for method in ranking.methods}, **block.cells_of_part},
        block.reference,
        block.threshold,
        block.families,
        collapsed,
    )
    comparisons = tuple(found for found in every if found.method not in block.cells_of_part)
    return replace(
        block,
        comparisons=comparisons,
        of_part=every[len(comparisons) :],
        design=power.of_effects([found.effect for found in comparisons], len(every), block.level),
        ranking=ranking,
        normalised=normalise(evidence.study, block.settings, block.cells, made, block.threshold),
        notes=(*block.notes, *notes),
        rank_notes=ranking.notes,
    )


def _metrics(study: Study) -> list[str]:
    found = list(dict.fromkeys(cell.metric for cell in study.all_cells if cell.metric))
    if len(found) < 2:
        return []
    return [
        f"Scores are of several metrics ({listed(found)}): they are not averaged, and each has its threshold."
    ]


def _sparse(study: Study) -> list[str]:
    """Notes on how little there is to go by."""
    notes = []
    most = max(cell.seeds for cell in study.all_cells)
    if most < LEAST_SEEDS:
        notes.append(
            f"{many(most, 'seed')} per cell at most: too little is known of how much training varies, so "
            "that no difference can be claimed."
        )
    elif most < 5:
        notes.append(
            f"{many(most, 'seed')} per cell at most: intervals are wide, and hardly any difference can be "
            "shown."
        )
    if len({cell.task for cell in study.all_cells}) == 1:
        notes.append("One task: what is said holds for it, and nothing can be said of other tasks.")
    cells = len(study.all_cells)
    if lost := sum(not cell.complete for cell in study.all_cells):
        notes.append(
            f"{many(lost, 'cell')} of {cells:,} incomplete: shown, marked †, with the seeds that they have."
        )
    return notes
