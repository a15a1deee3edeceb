"""The table that shows results in a notebook and at the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from tensorbench.machine.table import Table
from tensorbench.records.stored_plan import TEXT_COLUMNS, row_texts
from tensorbench.reports.results import Cell, Results, grouped, score_label

if TYPE_CHECKING:
    # This import takes seconds.
    from tensorbench.reports.analysis import Analysis


def overview(
    name: str,
    results: Results,
    notes: Sequence[str],
    analysis: Analysis | None = None,
) -> Table:
    """Summarises results in a table with a line per cell.

    `analysis` has the scores of tuned cells and the runs that collapsed (see `score`).
    """
    cells = results.all_cells
    tuned = any(cell.studies for cell in cells)
    alike = grouped(cells, lambda cell: (cell.setting, cell.studies is not None))
    lines = [
        row_texts(cell, "pruned" if cell.left else cell.ranks)
        | {
            "measure": score_label([cell] if cell.metric else alike[cell.setting, cell.studies is not None])
            + (f" after {cell.studies.k} trials of tuning" if cell.studies else ""),
            "score": score(cell, analysis),
        }
        | ({"studies": studies(cell)} if tuned else {})
        | {"trials": f"{cell.finished}/{cell.seeds}" + f" ✗ {cell.failures}" * bool(cell.failed)}
        for cell in cells
    ]
    how_to_read = []
    if tuned:
        note = (
            "The score after so many trials of tuning is that expected of the trial with the lowest "
            "validation loss, by all trials of complete studies."
        )
        if any("[" in line["score"] for line in lines):
            note += " In brackets: its 95% interval."
        how_to_read.append(note)
    if any(cell.studies is None and cell.finished > 1 for cell in cells):
        how_to_read.append("Without studies, ± is the standard deviation over seeds.")
    if any("collapsed" in line["score"] for line in lines):
        how_to_read.append("Runs that collapsed are counted, and are in no mean over seeds.")
    spare = ["% LoRA", "params", "of budget", "ranks"]
    if missed := sum(cell.within is False for cell in cells):
        # The column has the marks.
        spare.remove("of budget")
        how_to_read.append(f"{missed} row(s) marked ! miss their budget by more than its tolerance.")
    return Table(
        f"{name}: {results.facts.counted}",
        lines,
        [*notes, *how_to_read],
        (*TEXT_COLUMNS, "measure"),
        by=("task", "backbone", "measure", "budget"),
        spare=spare,
    )


def score(cell: Cell, analysis: Analysis | None = None) -> str:
    """A cell's score as text: mean ± standard deviation over seeds or, if tuned, the score after k trials.

    A score after k trials has its interval in brackets, if there is one; it needs `analysis`. A mean over
    seeds is that of the runs that did not collapse, unless all did. The number of collapsed runs follows. A
    dash if there is no score.
    """
    side = analysis.collapses.get(cell.number) if analysis else None
    counted = f" ({side.short})" if side and side.count else ""
    if cell.studies:
        if (found := analysis.score(cell) if analysis else None) is None:
            return "–"
        between = " [{:.4f}, {:.4f}]".format(*found.interval) if found.interval else ""
        return f"{found.value:.4f}{between}{counted}"
    ended = [seed for seed in cell.counted if seed.score is not None]
    if side:
        ended = [seed for seed in ended if seed.trial_id not in side.trials] or ended
    scores = [seed.score for seed in ended if seed.score is not None]
    if not scores:
        return "–"
    # Rounding first keeps floating-point errors from deciding a digit halfway between two.
    spread = f" ± {stdev(scores):.4f}" if len(scores) > 1 else ""
    return f"{round(fmean(scores), 9):.4f}{spread}{counted}"


def studies(cell: Cell) -> str:
    """The numbers of complete and planned studies as text, for example "3/5". A dash without studies.

    If some complete studies kept no trial, the text also has the number of these studies.
    """
    if cell.studies is None:
        return "–"
    kept = cell.kept
    failed = sum(seed is None for seed in kept.values())
    return f"{len(kept)}/{cell.studies.studies}" + (f" ({failed} without a trial)" if failed else "")
