"""Withholds verdicts of comparisons by studies, by the guards of all comparisons and by the edges of windows.

If a method's best rates lie at the edge of its window, its score is a lower bound, and the method is not
called worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tensorbench.records.stored_plan import StudyPlan
from tensorbench.reports.collapses import Collapses
from tensorbench.reports.guards import Guards, find_guards
from tensorbench.reports.inference.effects import Answer, Verdict
from tensorbench.reports.inference.intervals import Array
from tensorbench.reports.inference.studies import CompleteStudies
from tensorbench.reports.study import Cell, Study, TaskAndBackbone
from tensorbench.reports.study_blocks import Difference, Edge, Entrant, StudyBlock

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
    guards = find_guards(
        study, scored, [n for entrant in block.entrants for n in entrant.cells], reference, collapsed
    )
    edges = {entrant.method: _edges(study, entrant) for entrant in block.entrants}
    entrants = tuple(
        replace(
            entrant,
            differences={
                k: _left(
                    difference,
                    guards,
                    block.settings,
                    [edges[entrant.method], edges.get(block.against, [None] * (1 + len(block.settings)))],
                    [bool({*pair} & collapsed.keys()) for pair in zip(entrant.cells, reference, strict=True)],
                )
                for k, difference in entrant.differences.items()
            },
        )
        for entrant in block.entrants
    )
    over_all = tuple(edge for edge, *_ in edges.values() if edge)
    return replace(block, guards=guards.sentences, edges=over_all, entrants=entrants)


def _left(
    difference: Difference,
    guards: Guards,
    settings: Sequence[TaskAndBackbone],
    edges: Sequence[Sequence[Edge | None]],
    collapsed: Sequence[bool],
) -> Difference:
    """The difference with the verdicts that the guards leave.

    Args:
        settings: The settings of the difference.
        edges: The edges of the method and of the reference, each as `_edges` returns them.
        collapsed: Whether kept trials of either side collapsed, by setting.
    """
    over_all, *on_settings = zip(*edges, strict=True)
    places = zip(difference.verdicts, settings, on_settings, collapsed, strict=True)
    return replace(
        difference,
        verdict=_judged(guards.left(difference.verdict, settings), over_all, collapsed=any(collapsed)),
        verdicts=tuple(
            _judged(guards.left(verdict, [setting]), at, collapsed=fell)
            for verdict, setting, at, fell in places
        ),
    )


def _judged(verdict: Verdict, edges: Sequence[Edge | None], *, collapsed: bool) -> Verdict:
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
