"""Guards of comparisons by studies: withholds verdicts that something else than the methods would decide.

There is no verdict where nothing trained, or where the reference is no better than a head. If a method's best
rates lie at the edge of its window, its score is a lower bound, and the method is not called worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tensorbench.records.stored_plan import StudyPlan
from tensorbench.reports.cautions import HEADS, failed_references, unbeaten
from tensorbench.reports.collapses import Collapses, untrained
from tensorbench.reports.inference.effects import Answer, Verdict
from tensorbench.reports.inference.intervals import Array
from tensorbench.reports.inference.studies import CompleteStudies
from tensorbench.reports.study import Cell, Study
from tensorbench.reports.study_blocks import Difference, Edge, Entrant, StudyBlock
from tensorbench.reports.words import listed

#: A kept trial is at an edge if its rate lies within this share of the window from one of its ends.
OUTER = 0.2
#: The share of a method's studies with kept trials at one edge from which its score counts as a lower bound.
MOST = 0.5
#: The smallest and largest rates of the windows that are proposed.
SMALLEST, LARGEST = 2e-6, 0.5


def guarded(
    study: Study, block: StudyBlock, scored: Sequence[Cell], collapsed: Mapping[int, Collapses]
) -> StudyBlock:
    """Returns the block with its guards and edges, and with the verdicts that they leave.

    `scored` has all cells of the report, each with its score after `block.k` trials as its mean. `collapsed`
    has the kept trials that collapsed, by the number of the cell.
    """
    reference = block.reference.cells if block.reference else ()
    adapters = {*reference, *(number for entrant in block.entrants for number in entrant.cells)}
    cells = [
        cell
        for cell in scored
        if cell.number in adapters or (cell.family in HEADS and cell.setting in block.settings)
    ]
    nothing = untrained(study, cells)
    trained = [cell for cell in cells if cell.setting not in nothing]
    failed = failed_references(trained, [cell for cell in trained if cell.number in reference], {})
    runs = {cell.number: collapsed[cell.number] for cell in trained if cell.number in collapsed}
    guards = [*(unbeaten(trained) or failed.values()), *map(str, runs.values())]
    if nothing:
        guards.insert(
            0,
            f"Nothing trained on {listed(setting.task for setting in nothing)}: after {block.k} trials of "
            "tuning, no adapter scores above what a constant answer may reach by luck.",
        )
    lost = dict.fromkeys(nothing, "nothing trained")
    lost |= {scored[number].setting: f"{block.against} is no better than a head" for number in failed}
    edges = {entrant.method: _edges(study, entrant) for entrant in block.entrants}
    entrants = tuple(
        replace(
            entrant,
            differences={
                k: _left(
                    difference,
                    [lost.get(setting, "") for setting in block.settings],
                    [setting.task for setting in block.settings],
                    [edges[entrant.method], edges.get(block.against, [None] * (1 + len(block.settings)))],
                    [bool({*pair} & runs.keys()) for pair in zip(entrant.cells, reference, strict=True)],
                )
                for k, difference in entrant.differences.items()
            },
        )
        for entrant in block.entrants
    )
    found = tuple(edge for edge, *_ in edges.values() if edge)
    return replace(block, guards=tuple(guards), edges=found, entrants=entrants)


def _left(
    difference: Difference,
    lost: Sequence[str],
    tasks: Sequence[str],
    edges: Sequence[Sequence[Edge | None]],
    collapsed: Sequence[bool],
) -> Difference:
    """The difference with the verdicts that the guards leave.

    Args:
        lost: The reason why there is no verdict on a setting, by setting. Empty if there is a verdict.
        edges: The edges of the method and of the reference, each as `_edges` returns them.
        collapsed: Whether kept trials of either side collapsed, by setting.
    """
    why, task = next(((why, task) for why, task in zip(lost, tasks, strict=True) if why), ("", ""))
    why = f"{why} on {task}" if why and len(tasks) > 1 else why
    over_all, *on_settings = zip(*edges, strict=True)
    places = zip(difference.verdicts, lost, on_settings, collapsed, strict=True)
    return replace(
        difference,
        verdict=_judged(difference.verdict, why, over_all, collapsed=any(collapsed)),
        verdicts=tuple(_judged(verdict, why, at, collapsed=fell) for verdict, why, at, fell in places),
    )


def _judged(verdict: Verdict, lost: str, edges: Sequence[Edge | None], *, collapsed: bool) -> Verdict:
    if lost:
        return Verdict(Answer.NONE, reason=lost)
    # A method whose score is a lower bound may be better than it seems. So may the reference.
    for edge, side in zip(edges, ("worse", "better"), strict=True):
        if edge and verdict.side == side:
            return Verdict(Answer.UNDECIDED, reason=f"the best rates of {edge.method} lie at an edge")
    if verdict.answer is Answer.WITHIN and (collapsed or any(edges)):
        return Verdict(Answer.UNDECIDED, verdict.side)
    return verdict


def _edges(study: Study, entrant: Entrant) -> list[Edge | None]:
    """The edge of all studies together, followed by that on each setting. None where there is none."""
    plans = [plan for number in entrant.cells if (plan := study.all_cells[number].studies)]
    kept = [_kept(studies) / plan.decades for studies, plan in zip(entrant.studies, plans, strict=True)]
    return [_edge(entrant.method, plans[0], places) for places in (np.concatenate(kept), *kept)]


def _kept(studies: CompleteStudies) -> Array:
    """The offset of the trial that each study keeps, in decades. Studies that all diverged have none."""
    assert studies.offsets is not None
    losses = np.where(np.isfinite(studies.losses), studies.losses, np.inf)
    kept: Array = studies.offsets[np.arange(studies.count), losses.argmin(1)]
    return kept[np.isfinite(losses.min(1))]


def _edge(method: str, plan: StudyPlan, places: Array) -> Edge | None:
    """The edge at which kept trials lie. `places` are in widths of the window, from -0.5 to 0.5."""
    low, high = plan.ends
    if len(places) and (places > 0.5 - OUTER).mean() >= MOST:
        return Edge(method, "upper", (low, min(10 * high, LARGEST)), high)
    if len(places) and (places < OUTER - 0.5).mean() >= MOST:
        return Edge(method, "lower", (max(low / 10, SMALLEST), high), low)
    return None
