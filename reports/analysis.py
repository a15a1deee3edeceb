"""What the stored scores say: comparisons with LoRA, ranks, groups, aggregates; and where they say nothing.

One block is one budget. Within it methods are compared over settings (a task on a backbone), and only
methods whose every cell is complete take part; the others are named with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from reports.comparisons import AgainstReference, Reference, against_reference, find_reference
from reports.ranking import Ranking, normalise, rank
from reports.resampling import Resampled, resample
from reports.statistics import Aggregate
from reports.study import Cell, Study, TaskAndBackbone, block_order, grouped
from reports.words import listed, many

#: The smallest difference that matters unless the user says otherwise: one point of a score in [0, 1].
THRESHOLD = 0.01


@dataclass(frozen=True)
class Block:
    """What can be said about the methods of one budget."""

    budget: str
    #: Those on which some method is complete.
    settings: tuple[TaskAndBackbone, ...]
    #: The cells of every method that is complete on all of them, in the order of the settings.
    cells: Mapping[str, tuple[int, ...]] = field(repr=False)
    #: Method -> why it is in no comparison and no aggregate.
    left_out: Mapping[str, str]
    #: How many seeds all methods share on every setting at least.
    seeds: int = 0
    #: What the methods are compared with; None where there is no such thing.
    reference: Reference | None = None
    comparisons: tuple[AgainstReference, ...] = ()
    resampled: tuple[Resampled, ...] = ()
    #: None where the methods share no seed.
    ranking: Ranking | None = None
    #: Method -> its scores between head only and full fine-tuning.
    aggregates: Mapping[str, Aggregate] = field(default_factory=dict)
    #: Why a method, or every one, is not compared with the reference.
    notes: tuple[str, ...] = ()
    #: The same of ranks, groups and aggregates.
    rank_notes: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """Those that take part, best mean rank first."""
        return self.ranking.methods if self.ranking else tuple(self.cells)


@dataclass(frozen=True)
class Analysis:
    """A study with everything that is computed from it."""

    study: Study
    threshold: float
    blocks: tuple[Block, ...]
    #: What whoever reads the report must know, the notes of the study included.
    notes: tuple[str, ...]


def analyse(study: Study, threshold: float = THRESHOLD) -> Analysis:
    """Computes what the report shows beyond means."""
    budgets = sorted(dict.fromkeys(cell.budget for cell in study.all_cells), key=block_order)
    blocks = [_block(study, budget, threshold) for budget in budgets]
    resampled, left_out = resample(study, [block.comparisons for block in blocks])
    whole = (replace(block, resampled=found) for block, found in zip(blocks, resampled, strict=True))
    return Analysis(study, threshold, tuple(whole), (*study.notes, *left_out, *_sparse(study)))


def _block(study: Study, budget: str, threshold: float) -> Block:
    block = _entrants(budget, [cell for cell in study.all_cells if cell.budget == budget])
    if not block.cells:
        return block
    shared = [len(study.scores(cells)[0]) for cells in zip(*block.cells.values(), strict=True)]
    if min(shared) == 0:
        told = "The methods share no seed on some setting: nothing here is paired or ranked."
        return replace(block, notes=(*block.notes, told))
    ranking = rank(study, block.cells)
    reference, missing = find_reference(study, budget, block.settings)
    comparisons, uncompared = against_reference(
        study, {method: block.cells[method] for method in ranking.methods}, reference, threshold
    )
    aggregates, unnormalised = normalise(study, block.settings, block.cells, threshold)
    return replace(
        block,
        seeds=min(shared),
        reference=reference,
        comparisons=comparisons,
        ranking=ranking,
        aggregates=aggregates,
        notes=(*block.notes, *missing, *uncompared),
        rank_notes=(*_shared(study, block, min(shared)), *ranking.notes, *unnormalised),
    )


def _entrants(budget: str, planned: Sequence[Cell]) -> Block:
    """Who takes part in the comparisons of a budget, and who does not and why."""
    begun = {cell.setting for cell in planned if cell.complete}
    every = dict.fromkeys(cell.setting for cell in planned)
    settings = tuple(setting for setting in every if setting in begun)
    taking_part: dict[str, tuple[int, ...]] = {}
    left_out: dict[str, str] = {}
    for method, cells in grouped(planned, lambda cell: cell.method).items():
        found = {cell.setting: cell for cell in cells if cell.setting in begun}
        if not found:
            continue
        if reason := _incomplete(settings, found):
            left_out[method] = reason
        else:
            taking_part[method] = tuple(found[setting].number for setting in settings)
    notes = []
    if len(settings) < len(every):
        others = listed(setting for setting in every if setting not in begun)
        notes.append(f"No method is complete on {others}: not in what follows.")
    if left_out:
        methods = len(taking_part) + len(left_out)
        notes.append(
            f"{len(left_out)} of {methods} methods have incomplete cells and are in no comparison, "
            "rank or aggregate of this budget."
        )
    return Block(budget, settings, taking_part, left_out, notes=tuple(notes))


def _incomplete(settings: Iterable[TaskAndBackbone], found: Mapping[TaskAndBackbone, Cell]) -> str:
    """Why a method does not take part; empty if it does."""
    if absent := [setting for setting in settings if setting not in found]:
        return f"not planned on {listed(absent)}"
    short = (
        f"{cell.finished} of {cell.seeds} seeds on {cell.setting}"
        for cell in found.values()
        if not cell.complete
    )
    return "; ".join(short)


def _shared(study: Study, block: Block, seeds: int) -> list[str]:
    most = max(study.all_cells[cell].finished for cells in block.cells.values() for cell in cells)
    if seeds == most:
        return []
    return [
        f"On some setting all methods share {seeds} of up to {many(most, 'seed')}: ranks, groups "
        "and P(better) are of shared seeds alone, and may differ from the means."
    ]


def _sparse(study: Study) -> list[str]:
    """Notes on how little there is to go by."""
    notes = []
    most = max(cell.seeds for cell in study.all_cells)
    if most < 5:
        notes.append(
            f"{many(most, 'seed')} per cell at most: intervals are wide or absent, and hardly any difference "
            "can be shown."
        )
    cells = len(study.all_cells)
    if lost := sum(not cell.complete for cell in study.all_cells):
        notes.append(f"{many(lost, 'cell')} of {cells:,} incomplete: shown, marked †, and in no aggregate.")
    return notes
